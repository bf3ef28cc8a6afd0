"""Histories drawn at random, as people look at them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mmsrec_jax.data import ids
from mmsrec_jax.data.build import Prepared
from mmsrec_jax.data.inspection.numbers import day
from mmsrec_jax.data.windows import gap_words
from mmsrec_jax.runtime.errors import UserError

LONGEST = 20  # latest choices of a history that are shown


@dataclass(frozen=True)
class Choice:
    """One interaction. part: of the split, train, validation or test; "" of none. when, pause: in
    words, empty without a clock."""

    item: int
    id: str
    title: str
    category: str
    has_image: bool
    when: str
    pause: str
    rating: float | None
    part: str


@dataclass(frozen=True)
class History:
    """The latest choices of one user, oldest first; `count` in all. stated: what the user states
    of themselves, where the config asks for it."""

    user: str
    count: int
    choices: tuple[Choice, ...]
    stated: dict[str, str]

    def json(self) -> dict[str, Any]:
        choices = [
            {name: value for name, value in vars(choice).items() if name != "item"}
            for choice in self.choices
        ]
        told = {"stated": self.stated} if self.stated else {}
        return {"user": self.user, "interactions": self.count, **told, "choices": choices}

    def text(self) -> str:
        """Lines for the screen."""
        told = "".join(f", {name} {value}" for name, value in self.stated.items())
        lines = [f"user {self.user}: {self.count:,} interactions{told}"]
        for choice in self.choices:
            cells = [
                choice.when,
                choice.id,
                f"{choice.rating:g}" if choice.rating is not None else "",
                choice.title,
                f"[{choice.category}]" if choice.category else "",
                "" if choice.has_image else "(no picture)",
                f"<- {choice.part}" if choice.part in ("validation", "test") else "",
            ]
            lines.append("  " + "  ".join(filter(None, cells)))
        return "\n".join(lines)


def draw(prepared: Prepared, count: int, seed: int) -> list[History]:
    """The histories of users drawn at random, by seed."""
    number = len(prepared.dataset.histories)
    chosen = np.random.default_rng(seed).choice(number, min(count, number), replace=False)
    return [_history(prepared, int(u)) for u in np.sort(chosen)]


def of_user(prepared: Prepared, user: str) -> History:
    """The history of one user, by raw id. Raises UserError when there is none."""
    users = prepared.dataset.histories.users
    found = np.flatnonzero(users == user)
    if not len(found):
        hint = ids.did_you_mean(user, users)
        raise UserError(
            f"--user={user}: no such user among the {len(users):,} that are left after filtering"
            + (f"; {hint}" if hint else "; lower config.data.user_core to keep more")
        )
    return _history(prepared, int(found[0]))


def _history(prepared: Prepared, u: int) -> History:
    catalog, histories, split = prepared.dataset
    items, times = histories.of(u), histories.times(u)
    parts = {position: "train" for position in range(int(split.train_end[u]))}
    for name in ("validation", "test"):
        rows = getattr(split, name)
        parts |= {int(position): name for position in rows[rows[:, 0] == u, 1]}
    ratings = None if histories.ratings is None else histories.ratings[histories.offsets[u] :]
    texts = prepared.items if isinstance(prepared.items, list) else prepared.items.without_images()
    choices = []
    for position in range(max(0, len(items) - LONGEST), len(items)):
        number = int(items[position])
        item = texts[number]
        gap = times[position] - times[position - 1] if histories.clock and position else None
        choices.append(
            Choice(
                item=number,
                id=item.id,
                title=item.title,
                category=item.category or "",
                has_image=bool(catalog.has_image[number]),
                when=day(times[position]) if histories.clock else "",
                pause="" if gap is None else f"{gap_words(gap)} later",
                rating=None if ratings is None else float(ratings[position]),
                part=parts.get(position, ""),
            )
        )
    stated = {} if histories.stated is None else histories.stated.stated(u)
    return History(str(histories.users[u]), len(items), tuple(choices), stated)
