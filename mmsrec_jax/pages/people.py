"""Sections about users: what each had, what was recommended and why, and the worst failures."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from mmsrec_jax.data import user_attributes
from mmsrec_jax.data.records import Dataset
from mmsrec_jax.evaluation import protocols
from mmsrec_jax.evaluation.metrics import Ranks
from mmsrec_jax.pages import written
from mmsrec_jax.pages.document import note, stated
from mmsrec_jax.pages.markup import Content, Html, clipped, element, joined
from mmsrec_jax.pages.pictures import Pictures
from mmsrec_jax.pages.results import Results
from mmsrec_jax.pages.shown_items import (
    bare_strip,
    marked,
    ranked_line,
    small,
    strip,
    title_of,
)
from mmsrec_jax.pages.written import About
from mmsrec_jax.runtime import disk

USERS, LISTED, FAILURES = 10, 10, 10
_TRUTH = "true item"
_HISTORY = 12  # latest items of a history that are shown


@dataclass(frozen=True)
class Person:
    """A test user.

    Attributes:
      user: index into the histories.
      history: the latest items before the target, oldest first.
      target: the true next item.
      rank, candidates: where it stood, among how many.
      top: the best items, best first; empty without lists.
      neighbors: (next item, similarity) of the similar users that a prompt shows.
      elsewhere: system -> rank of the same target by it.
    """

    user: int
    history: list[int]
    target: int
    rank: int
    candidates: int
    top: list[int]
    neighbors: list[tuple[int, float]]
    elsewhere: dict[str, int]

    @property
    def items(self) -> set[int]:
        return {*self.history, self.target, *self.top, *(item for item, _ in self.neighbors)}


def users_section(
    workdir: Path,
    results: Results,
    dataset: Dataset,
    pictures: Pictures,
    done: Collection[str],
) -> Html:
    """Ten test users drawn at random, with all that led to their lists; done: names of the steps
    that are done, what others left is not shown."""
    system, protocol, ranks = _shown(results)
    if ranks is None:
        return note("The run ranked nothing for single users.")
    drawn = np.random.default_rng(0).choice(len(ranks), min(USERS, len(ranks)), replace=False)
    others = {
        f"{name}, {of}" if of != protocol else name: found
        for of, name in ((protocol, results.baseline), (_sampled(results), results.headline))
        if (found := results.ranks.get((of, name))) is not None and name != system
    }
    retrieval = "retrieval" in done
    people = _people(workdir, ranks, np.sort(drawn), dataset, others=others, retrieval=retrieval)
    about = written.of_items(workdir, {item for person in people for item in person.items}, done)
    names = [str(dataset.histories.users[person.user]) for person in people]
    texts = written.of_users(workdir, names, done)
    told = _stated(workdir, names) if "users" in done else {}
    people_html = [
        _person(
            person, name, told.get(name, {}), texts.get(name, {}), about, pictures,
            is_open=number == 0,
        )
        for number, (person, name) in enumerate(zip(people, names, strict=True))
    ]  # fmt: skip
    return joined(
        note(
            f"{len(people)} test users drawn at random. Ranks and lists are those of {system}, "
            f"protocol {protocol}"
            + ("" if system == results.headline else f"; {results.headline} has no such lists")
            + ". Marked words are shared with the user's history (× how often) or with the next "
            "items of similar users."
        ),
        people_html,
    )


def failures_section(
    workdir: Path,
    results: Results,
    dataset: Dataset,
    pictures: Pictures,
    done: Collection[str],
) -> Html:
    """The targets that stood worst among their candidates; done: as of `users_section`."""
    system, protocol, ranks = _shown(results, lists=False)
    if ranks is None:
        return note("The run ranked nothing for single users.")
    worst = np.argsort(-(ranks.ranks / ranks.candidates), kind="stable")[:FAILURES]
    people = _people(workdir, ranks, worst, dataset)
    about = written.of_items(workdir, {item for person in people for item in person.items}, done)
    histories = dataset.histories
    targets = np.array([person.target for person in people])
    seen = _training_count(dataset, targets)
    cards = []
    for person, count in zip(people, seen, strict=True):
        item = pictures.item(person.target)
        words, _ = _reasons(person.target, person, about, pictures)
        cards.append(
            element(
                "li",
                pictures.picture(person.target),
                element("h3", title_of(item), class_="title"),
                element(
                    "div",
                    f"rank {person.rank:,} of {person.candidates:,} for user ",
                    clipped(str(histories.users[person.user]), 40),
                    class_="id",
                ),
                element("div", f"{count:,} training interactions have it", class_="id"),
                element("div", words, class_="wide"),
                element(
                    "div",
                    element("h4", "The user's latest items"),
                    bare_strip(person.history[-4:], pictures),
                    class_="wide",
                ),
                class_="card",
            )
        )
    return joined(
        note(
            f"The {len(people)} test users of {system}, protocol {protocol}, whose true item stood "
            "worst. Marked words are shared with the user's history: few or none, and no model "
            "that reads content could know."
        ),
        element("ul", cards, class_="cards"),
    )


def _shown(results: Results, *, lists: bool = True) -> tuple[str, str, Ranks | None]:
    """The system, protocol and ranks of single users: the headline's in the whole catalog; else,
    with `lists`, those of the baseline, else the headline's among candidates."""
    own = results.ranks.get((protocols.FULL, results.headline))
    if own is not None:
        return results.headline, protocols.FULL, own
    if lists and (system := results.with_lists()):
        return system, protocols.FULL, results.ranks[protocols.FULL, system]
    for protocol in results.protocols:
        if (found := results.ranks.get((protocol, results.headline))) is not None:
            return results.headline, protocol, found
    return results.headline, "", None


def _sampled(results: Results) -> str:
    """The first protocol of sampled candidates; empty where there is none."""
    return next((name for name in results.protocols if name != protocols.FULL), "")


def _people(
    workdir: Path,
    ranks: Ranks,
    at: np.ndarray,
    dataset: Dataset,
    *,
    others: Mapping[str, Ranks] = {},
    retrieval: bool = False,
) -> list[Person]:
    """The users of these rows of `ranks`, int[m]."""
    chosen = ranks.select(at)
    rows = dataset.split.test
    where = {int(user): int(position) for user, position in rows[np.isin(rows[:, 0], chosen.users)]}
    near = _neighbors(workdir, chosen.users) if retrieval else {}
    found = []
    for place, user in enumerate(chosen.users.tolist()):
        position = where[user]
        history = dataset.histories.of(user)[:position]
        taken = set(history.tolist())  # which prompts pass over
        found.append(
            Person(
                user=user,
                history=history[-_HISTORY:].tolist(),
                target=int(chosen.targets[place]),
                rank=int(chosen.ranks[place]),
                candidates=int(chosen.candidates[place]),
                top=[item for item in chosen.top[place].tolist() if item >= 0][:LISTED],
                neighbors=[pair for pair in near.get((user, position), []) if pair[0] not in taken],
                elsewhere={name: int(other.ranks[at[place]]) for name, other in others.items()},
            )
        )
    return found


def _neighbors(workdir: Path, users: np.ndarray) -> dict[tuple[int, int], list[tuple[int, float]]]:
    """(user, position) -> [(item, similarity)] of these users."""
    path = workdir / "retrieval" / "neighbors.parquet"
    with disk.readable(path, "run the step retrieval again"):
        table = pq.read_table(
            path,
            columns=["user", "position", "items", "similarity"],
            filters=[("user", "in", users.tolist())],
        )
    return {
        (row["user"], row["position"]): [
            (item, similarity)
            for item, similarity in zip(row["items"], row["similarity"], strict=True)
            if item >= 0
        ]
        for row in table.to_pylist()
    }


def _stated(workdir: Path, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Raw id -> what the user states of themselves, where step `users` read it."""
    attributes = user_attributes.read(workdir / "users", np.array(names))
    return {name: attributes.stated(at) for at, name in enumerate(names)}


def _training_count(dataset: Dataset, items: np.ndarray) -> list[int]:
    """How many training interactions have each of a few items."""
    histories, split = dataset.histories, dataset.split
    at = np.flatnonzero(np.isin(histories.items, items))
    users = np.searchsorted(histories.offsets, at, side="right") - 1
    trained = at - histories.offsets[users] < split.train_end[users]
    counts = Counter(histories.items[at[trained]].tolist())
    return [counts[int(item)] for item in items]


def _person(
    person: Person,
    name: str,
    told: Mapping[str, str],
    texts: dict[str, str],
    about: dict[int, About],
    pictures: Pictures,
    *,
    is_open: bool,
) -> Html:
    is_hit = person.rank <= LISTED
    summary = element(
        "summary",
        element("h3", clipped(name, 40), class_="name"),
        element("span", f"true item at rank {person.rank:,} of {person.candidates:,}"),
        [
            element("span", f"by {other}: {rank:,}", class_="id")
            for other, rank in person.elsewhere.items()
        ],
        element(
            "span",
            f"in the first {LISTED}" if is_hit else f"not in the first {LISTED}",
            class_="tag yes" if is_hit else "tag",
        ),
    )
    words, why = _reasons(person.target, person, about, pictures)
    parts: list[Content] = [
        element("h4", "History, oldest first"),
        strip(person.history, pictures),
    ]
    if person.neighbors:
        items = [item for item, _ in person.neighbors]
        labels = [small(f"similarity {similarity:.2f}") for _, similarity in person.neighbors]
        parts += [
            element("h4", "What similar users took next"),
            strip(items, pictures, labels),
        ]
    if told:
        parts += [element("h4", "What the user states"), stated(told)]
    for kind, title in (("profile", "Profile"), ("preference", "Latest preference")):
        if text := texts.get(kind):
            parts += [element("h4", title), element("p", clipped(text, 400))]
    parts += [
        element("h4", "What the user took in truth"),
        element(
            "ul",
            ranked_line(
                person.rank, person.target, pictures, words, mark=_TRUTH, said=why, kind="truth"
            ),
            class_="ranked",
        ),
    ]
    if person.top:
        lines = []
        for rank, item in enumerate(person.top, 1):
            words, why = _reasons(item, person, about, pictures)
            truth = {"mark": _TRUTH, "kind": "truth"} if item == person.target else {}
            lines.append(ranked_line(rank, item, pictures, words, said=why, **truth))
        parts += [
            element("h4", f"First {len(person.top)} of the list"),
            element("ol", lines, class_="ranked"),
        ]
    return element("details", summary, element("div", parts), class_="person", open=is_open)


def _reasons(
    item: int, person: Person, about: dict[int, About], pictures: Pictures
) -> tuple[list[Html], str]:
    """The words of an item, marked where the history or similar users' items have them, and a
    sentence: what a content-based model could go by."""
    words = _words(item, about, pictures)
    before = Counter(
        word for past in person.history for word in dict.fromkeys(_words(past, about, pictures))
    )
    near = [other for other, _ in person.neighbors]
    beside = {word for other in near for word in _words(other, about, pictures)}
    taken = near.count(item)
    why = ""
    if taken:
        why = "a similar user took it next" if taken == 1 else f"{taken} similar users took it next"
    return marked(words, before, beside), why


def _words(item: int, about: dict[int, About], pictures: Pictures) -> list[str]:
    """Keywords of an item, or, where none were written, its category and attributes."""
    if (known := about.get(item)) and known.keywords:
        return known.keywords
    found = pictures.item(item)
    return list(dict.fromkeys([*([found.category] if found.category else []),
                               *found.attributes.values()]))  # fmt: skip
