"""Ranked items for a user or a typed history, by a finished run, and what they rest on.

Which items compete, and by which scores, says one `CatalogScorer`: see `Recommending.__init__`.
"""

import dataclasses
import hashlib
import json
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from mmsrec_jax.data import images, item_lines
from mmsrec_jax.data.ids import did_you_mean
from mmsrec_jax.data.records import Catalog, Histories, Item
from mmsrec_jax.methods import mllm_srec, recorded
from mmsrec_jax.methods.scorer import RunScorer, Scorer, item_indices
from mmsrec_jax.methods.taste_scorer import TasteScorer, Told
from mmsrec_jax.retrieval.similar import Neighbors
from mmsrec_jax.runtime import files, reading, startup
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.printable import printable
from mmsrec_jax.runtime.settings import check_number
from mmsrec_jax.runtime.workdir import check_is_run

_LONGEST_NAME = 200  # file systems take 255 bytes, with the end and while it is being written
_PREPARED = 8  # items of a history that also have texts about windows
RERANKED = 100  # items that compete in a run whose config.evaluation.rerank is 0


@dataclasses.dataclass(frozen=True)
class Shown:
    """An item for people; keywords are none in a run without summaries."""

    id: str
    title: str
    keywords: list[str]


@dataclasses.dataclass(frozen=True)
class Neighbor(Shown):
    """What a similar user took next; similarity: cosine of both users' histories."""

    similarity: float


@dataclasses.dataclass(frozen=True)
class Ranked(Shown):
    """A recommended item.

    Attributes:
      rank: from 1.
      score: of the answer's scorer; scores of one answer compare, those of two do not.
      sequential_score: of the run's sequential recommender; None of a new item.
      picture: path of its picture; None where there is none.
      added: the item is new to the run.
    """

    rank: int
    score: float
    sequential_score: float | None
    picture: str | None
    added: bool


@dataclasses.dataclass(frozen=True)
class Answer:
    """What is recommended, and what it rests on.

    Attributes:
      user: raw id; None for a typed history.
      scorer: what gave the scores.
      history: the latest items, oldest first, as many as a prompt shows.
      neighbors: next items of similar users in the prompt, most similar first; none in a run
        without retrieval.
      items: best first.
      told: texts about the history in the prompt of MLLM-SRec; None of MMSRARec.
    """

    user: str | None
    scorer: str
    history: list[Shown]
    neighbors: list[Neighbor]
    items: list[Ranked]
    told: Told | None = None

    def json(self) -> str:
        """One JSON object with the fields of this class and of its items."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)

    def text(self) -> str:
        """For people."""
        lines = ["history, oldest first:", *map(_line, self.history)]
        if self.neighbors:
            lines += ["similar users took next:"]
            lines += [
                f"{_line(item)}  (similarity {item.similarity:.3f})" for item in self.neighbors
            ]
        if self.told is not None:
            if self.told.stated:
                states = (f"{name} {value}" for name, value in self.told.stated.items())
                lines += [f"the user states: {', '.join(states)}"]
            lines += ["preferences, oldest window first:"]
            lines += [f"     {text}" for text in self.told.preferences]
            for name, text in (
                ("profile", self.told.profile),
                ("chain of thought", self.told.chain),
            ):
                lines += [f"{name}: {text}"] if text else []
            lines += [f"texts of windows written for this answer: {self.told.windows_written}"]
        lines += [f"recommended by {self.scorer}:"]
        for item in self.items:
            new = ", new" if item.added else ""
            lines += [f"{item.rank:3}. {item.id}  {item.title}  (score {item.score:.4f}{new})"]
            lines += [f"     {', '.join(item.keywords)}"] if item.keywords else []
            lines += [f"     {item.picture or 'no picture'}"]
        return "\n".join(map(printable, lines))


@dataclasses.dataclass(frozen=True)
class Query:
    """What a scorer is asked.

    Attributes:
      history: of one user, in terms of the scorer's catalog.
      neighbors: of that user, one row; None in a run without retrieval.
      now: when it is asked, seconds since 1970; None: right after the last choice.
    """

    history: Histories
    neighbors: Neighbors | None
    now: float | None


class Scored(NamedTuple):
    """Items that compete, in any order, none of which the history holds.

    items: int32[n]; scores: float32[n]; sequential: float32[n], NaN where there is no such score.
    """

    items: np.ndarray
    scores: np.ndarray
    sequential: np.ndarray


class CatalogScorer(Protocol):
    """Anything that says which items of a catalog compete after a history, and scores them."""

    @property
    def name(self) -> str: ...

    def scores(self, query: Query) -> Scored: ...


class Reranked:
    """The best items of the run's sequential recommender and all new ones, by the margin that its
    MLLM gives each in the paper's joint form."""

    def __init__(self, scorer: RunScorer):
        self._scorer, self.name = scorer, f"{scorer.config.method}/rerank"

    def scores(self, query: Query) -> Scored:
        scorer, past = self._scorer, query.history.items
        scores = _sequential(scorer, query)
        scores[past[past < len(scores)]] = -np.inf
        depth = scorer.config.evaluation.rerank or RERANKED
        best = np.argsort(-scores, kind="stable")[:depth]
        best = best[scores[best] > -np.inf]
        added = np.setdiff1d(np.arange(len(scores), len(scorer.catalog)), past)
        items = np.concatenate([best, added]).astype(np.int32)
        sequential = np.concatenate([scores[best], np.full(len(added), np.nan)])
        if not len(items):
            return Scored(items, np.zeros(0, np.float32), sequential)
        return Scored(
            items, scorer.margins(query.history, items, query.neighbors, query.now), sequential
        )


class WholeCatalog:
    """All items by the margin that the run's MLLM gives each from its stored keys and values."""

    def __init__(self, scorer: RunScorer):
        self._scorer, self.name = scorer, f"{scorer.config.method}/cached"

    def scores(self, query: Query) -> Scored:
        scorer = self._scorer
        margins = scorer.catalog_margins(query.history, query.neighbors, query.now)
        items = np.setdiff1d(np.arange(len(margins), dtype=np.int32), query.history.items)
        sequential = np.full(len(margins), np.nan)
        sequential[: scorer.num_trained] = _sequential(scorer, query)
        return Scored(items, margins[items], sequential[items])


def _sequential(scorer: RunScorer, query: Query) -> np.ndarray:
    """Scores of the run's sequential recommender, float32[items of the run]."""
    known = scorer.trained_part(query.history)
    scores = scorer.recommender.scores(known.items[None], known.timestamps[None])
    return np.array(scores)[0]


class Recommending:
    """A finished run that is asked for recommendations; its weights stay in memory.

    Args:
      workdir: of the run.
      mesh: None takes all devices.
      form: of stage 3; None is the first of the run.

    Raises:
      UserError: no run, or one that is not finished or trained no MLLM, or not in this form.
    """

    def __init__(
        self,
        workdir: str | Path,
        mesh: jax.sharding.Mesh | None = None,
        form: str | None = None,
    ):
        self._workdir = Path(workdir)
        check(self._workdir)
        self._run = open_scorer(self._workdir, mesh, form)
        by_form: dict[str, type[Reranked | WholeCatalog]] = {
            "joint": Reranked,
            "cached": WholeCatalog,
        }
        self._scorer: CatalogScorer = by_form[self._run.form](self._run)

    @property
    def catalog(self) -> Catalog:
        """Of the run, with new items behind its own."""
        return self._run.catalog

    @property
    def num_added(self) -> int:
        """Items of the catalog that are new to the run."""
        return len(self.catalog) - self._run.num_trained

    @property
    def takes_new_items(self) -> bool:
        """Whether `add` can."""
        return self._run.takes_new_items

    @property
    def needs_times(self) -> bool:
        """Whether a typed history needs the times of its items."""
        return self._run.needs_times

    @property
    def users(self) -> np.ndarray:
        """Raw ids of the users in the data: str[U]."""
        return self._run.histories.users

    @property
    def scorer_name(self) -> str:
        """What gives the scores."""
        return self._scorer.name

    def keywords(self, item: int) -> list[str]:
        """Those that prompts show of an item of the catalog."""
        return self._run.keywords(item)

    def prepare(self) -> None:
        """Loads the weights and asks once for histories of every length that is compiled apart, so
        that later questions only run."""
        run, length, is_scored = self._run, 1, False
        while True:
            items = (np.arange(length) % run.num_trained).astype(np.int32)
            typed = run.typed(items, list(range(length)))
            query = Query(typed, run.neighbors(typed), None)
            _sequential(run, query)
            if not is_scored and length >= _PREPARED:
                self._scorer.scores(query)
                is_scored = True
            if is_scored and length >= run.recommender.config.length:
                return
            length *= 2

    def add(self, items: Sequence[Item]) -> None:
        """New items, which compete from now on. Nothing is trained; the run's summarizer writes
        their keywords. Raises UserError for an id that the catalog has."""
        self._run.add(items)

    def recommend(
        self,
        *,
        user: str | None = None,
        history: Sequence[str] | None = None,
        times: Sequence[float] | None = None,
        now: float | None = None,
        about: Mapping[str, str] | None = None,
        top: int = 10,
        pictures: bool = True,
    ) -> Answer:
        """The best items that the history does not hold.

        Args:
          user: raw id; their history is all that the data has of them.
          history: raw item ids, oldest first, of nobody in the data. One of both is given.
          times: seconds since 1970 of the items of `history`, for a run that reads the clock.
          now: when this is asked, seconds since 1970, for prompts that tell pauses; None: right
            after the last choice.
          about: field -> what the user of `history` states of themselves, for a run that reads it.
          top: how many items at most.
          pictures: write those of the items to the run's folder and name their paths.

        Raises:
          UserError: an id that the run does not know, an empty history, both a user and a history,
            or neither; times that are not finite and ascending, or `now` before the last of them;
            a field of `about` that the run does not read.
        """
        run = self._run
        check_number("top", top, low=1)
        query = self._query(user, history, times, now, about)
        scored = self._scorer.scores(query)
        order = np.argsort(-scored.scores, kind="stable")[:top]
        shown = query.history.items[-run.config.prompts.history :]
        neighbors = []
        if (near := query.neighbors) is not None:
            for item, similarity in zip(near.items[0], near.similarity[0], strict=True):
                if item >= 0 and item not in query.history.items:  # which prompts pass over
                    neighbors.append(Neighbor(**self._shown(item), similarity=float(similarity)))
        return Answer(
            user,
            self._scorer.name,
            [Shown(**self._shown(item)) for item in shown],
            neighbors,
            [self._ranked(scored, place, rank, pictures) for rank, place in enumerate(order, 1)],
            self._run.told if isinstance(self._run, TasteScorer) else None,
        )

    def _query(
        self,
        user: str | None,
        history: Sequence[str] | None,
        times: Sequence[float] | None,
        now: float | None,
        about: Mapping[str, str] | None,
    ) -> Query:
        run = self._run
        if (user is None) == (history is None):
            raise UserError("give --user=ID or --history=ID,ID,...: one of them, and not both")
        if history is not None:
            past = item_indices(run.catalog, history, "history")
            typed = run.typed(past, times, about=about)
        else:
            assert user is not None
            if times is not None:
                raise UserError("--times belong to --history; those of a user are in the data")
            if about:
                raise UserError("--about belongs to --history; what a user states is in the data")
            of_user = np.flatnonzero(run.histories.users == user)
            if not len(of_user):
                remedy = did_you_mean(user, run.histories.users) or (
                    "ids are those of the raw files, as far as the run's filters keep them; name "
                    "the history of a new user instead"
                )
                raise UserError(f"the run knows no user {user!r}; {remedy}")
            at = int(of_user[0])
            whole = run.histories
            mine = slice(whole.offsets[at], whole.offsets[at + 1])
            rated = None if whole.ratings is None else whole.ratings[mine]
            typed = run.typed(whole.of(at), whole.times(at).tolist(), user, ratings=rated)
        if now is not None:
            check_number("now", now, float)
            if typed.clock and now < typed.timestamps[-1]:
                raise UserError(
                    f"now={now:g}: the last choice was at {typed.timestamps[-1]:.0f} (seconds "
                    "since 1970); give a later time"
                )
        return Query(typed, run.neighbors(typed), now)

    def _shown(self, item: int) -> dict[str, Any]:
        run = self._run
        return {
            "id": str(run.catalog.ids[item]),
            "title": run.catalog[int(item)].title,
            "keywords": run.keywords(item),
        }

    def _ranked(self, scored: Scored, place: int, rank: int, pictures: bool) -> Ranked:
        item, sequential = int(scored.items[place]), float(scored.sequential[place])
        return Ranked(
            **self._shown(item),
            rank=rank,
            score=float(scored.scores[place]),
            sequential_score=None if np.isnan(sequential) else sequential,
            picture=self._picture(self._run.catalog[item]) if pictures else None,
            added=item >= self._run.num_trained,
        )

    def _picture(self, item: Item) -> str | None:
        """Path of the item's picture, which is written to the run's folder `pictures`."""
        if item.image is None:
            return None
        path = self._workdir / "pictures" / (_file_name(item.id) + images.suffix(item.image))
        if not path.is_file() or path.read_bytes() != item.image:
            files.write_bytes(path, item.image)
        return str(path)


def open_scorer(
    workdir: Path, mesh: jax.sharding.Mesh | None = None, form: str | None = None
) -> RunScorer:
    """The MLLM of a finished run, of either method; arguments as of `RunScorer`."""
    kind = TasteScorer if recorded.method(workdir) == mllm_srec.NAME else Scorer
    return kind(workdir, mesh, form)


def check(workdir: Path) -> None:
    """Stops early when `workdir` is no finished run that trained an MLLM (UserError)."""
    if not workdir.is_dir():
        raise UserError(f"{workdir}: no such folder; name the --workdir of a finished run")
    if not (workdir / "data" / "step.json").is_file():
        check_is_run(workdir)
        raise UserError(
            f"{workdir}: no run has begun in this folder; name the --workdir of launch/train.py"
        )
    if not recorded.forms(workdir):
        raise UserError(
            f"{workdir}: this run has a sequential recommender alone; mmsrec_jax.recommend gives "
            "its items, or run a config with method=mmsrarec"
        )


def opened(workdir: Path, *, added: Path | None, form: str | None) -> Recommending:
    """What `launch/recommend.py` asks.

    added: file of new items, see `data.item_lines`. form: as of `Recommending`.
    """
    check(workdir)
    startup.keep_compiled_programs(workdir / "compiled")
    items = [] if added is None else item_lines.read(added)
    recommending = Recommending(workdir, form=form)
    if items:
        recommending.add(items)
    return recommending


def numbers(times: Sequence[str], name: str = "--times") -> list[float]:
    """The values of a list of times. name: of the flag or field, for errors. Raises UserError."""
    try:
        return list(map(reading.number, times))
    except ValueError as error:
        raise UserError(f"{name}: {error}; give seconds since 1970, separated by commas") from error


def attributes(flag: Sequence[str] | None) -> dict[str, str]:
    """The values of the flag --about, FIELD=VALUE each, by field. Raises UserError."""
    found: dict[str, str] = {}
    for part in flag or ():
        name, equals, value = (text.strip() for text in part.partition("="))
        if not (name and equals and value):
            raise UserError(f"--about: {part!r} is not FIELD=VALUE, as in --about=age=35,gender=F")
        if name in found:
            raise UserError(f"--about: {name} stands twice; name each field once")
        found[name] = value
    return found


def _file_name(id: str) -> str:
    """Of an item's picture, without its end: the id, or a hash where that is too long a name."""
    name = urllib.parse.quote(id, safe="")
    return name if len(name) <= _LONGEST_NAME else hashlib.sha256(id.encode()).hexdigest()


def _line(item: Shown) -> str:
    return "  ".join(["    ", item.id, item.title, ", ".join(item.keywords)])
