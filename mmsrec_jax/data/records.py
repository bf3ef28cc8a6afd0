"""What every later step sees of a data set: items, a catalog of them, histories and a split."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from mmsrec_jax.data import images
from mmsrec_jax.data.user_attributes import UserAttributes

LONGEST_ID = 256  # characters: arrays of ids have rows of the longest one's width


@dataclass(frozen=True)
class Item:
    """One thing that can be recommended.

    text: field -> words ("title", "description", ...), empty fields absent, in display order.
    image: the encoded file (JPEG, PNG, ...) as it was read, None when there is none.
    """

    id: str
    text: dict[str, str] = field(default_factory=dict)
    image: bytes | None = None
    category: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What a list of items shows: the title, else the first text, else nothing."""
        return self.text.get("title") or next(iter(self.text.values()), "")


class ItemSource(Protocol):
    """Items one by one, read when they are asked for."""

    def __getitem__(self, i: int) -> Item: ...


class Catalog:
    """Items by index. Picklable when `source` is; holds no text and no pixels itself.

    Args:
      source: `source[i] -> Item` for 0 <= i < N.
      ids: str[N], unique.
      has_image: bool[N].
    """

    def __init__(self, source: ItemSource, ids: np.ndarray, has_image: np.ndarray):
        self._source = source
        self.ids = np.asarray(ids, dtype=np.str_)
        self.has_image = np.asarray(has_image, dtype=bool)

    @classmethod
    def from_items(cls, items: Iterable[Item]) -> "Catalog":
        """A catalog in memory, for small or generated data."""
        items = list(items)
        ids = np.array([item.id for item in items], dtype=np.str_)
        has_image = np.array([item.image is not None for item in items], dtype=bool)
        return cls(items, ids, has_image)

    def extended(self, items: Sequence[Item]) -> "Catalog":
        """A catalog with these items behind its own; their ids must be new."""
        ids = np.concatenate([self.ids, [item.id for item in items]])
        has_image = [item.image is not None for item in items]
        source = _Chained(self._source, len(self), items)
        return Catalog(source, ids, np.concatenate([self.has_image, has_image]))

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "index"}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Item:
        if not 0 <= i < len(self):
            raise IndexError(f"item {i} of a catalog of {len(self)}")
        return self._source[i]

    def __iter__(self) -> Iterator[Item]:
        return (self[i] for i in range(len(self)))

    @cached_property
    def index(self) -> dict[str, int]:
        """id -> position."""
        return {id: i for i, id in enumerate(self.ids.tolist())}

    def image(self, i: int) -> np.ndarray | None:
        """uint8[height, width, 3], or None when the item has no image."""
        found = self.picture(i)
        return None if found is None else np.array(found)

    def picture(self, i: int) -> Image.Image | None:
        """`image` before its pixels are copied into an array."""
        encoded = self[i].image if self.has_image[i] else None
        return None if encoded is None else images.picture(encoded)

    def text(self, i: int, fields: Sequence[str] | None = None) -> str:
        """The texts of the fields that the item has (all, or those named, in that order)."""
        text = self[i].text
        return ". ".join(
            text[name] for name in (text if fields is None else fields) if name in text
        )


@dataclass(frozen=True)
class _Chained:
    """The items of a source, of which there are `count`, and more behind them."""

    first: ItemSource
    count: int
    others: Sequence[Item]

    def __getitem__(self, i: int) -> Item:
        return self.first[i] if i < self.count else self.others[i - self.count]


@dataclass(frozen=True, eq=False)
class Histories:
    """Interactions grouped by user, each user's in time order.

    users: str[U]; offsets: int64[U+1]; items: int32[T] indices into the catalog;
    timestamps: float64[T], seconds since 1970, or positions 0, 1, 2, ... when `clock` is False;
    ratings: float32[T] or None. User u's interactions are rows offsets[u]:offsets[u+1].
    stated: what users state of themselves, of each of the U; None where nobody asked for it. It is
    in no store (`data.store`).
    """

    users: np.ndarray
    offsets: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray
    ratings: np.ndarray | None = None
    clock: bool = True
    stated: UserAttributes | None = None

    def __post_init__(self) -> None:
        for name, dtype in _HISTORY_TYPES.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=dtype))
        total = self.offsets[-1]
        if len(self.offsets) != len(self.users) + 1 or self.offsets[0] != 0:
            raise ValueError(f"{len(self.offsets)} offsets for {len(self.users)} users")
        if len(self.items) != total or len(self.timestamps) != total:
            raise ValueError(f"offsets end at {total}, but there are {len(self.items)} items")
        if self.ratings is not None and len(self.ratings) != total:
            raise ValueError(f"{len(self.ratings)} ratings for {total} interactions")
        if self.stated is not None and len(self.stated) != len(self.users):
            raise ValueError(f"attributes of {len(self.stated)} users for {len(self.users)} users")

    @classmethod
    def from_rows(
        cls,
        users: Sequence[str] | np.ndarray,
        user_of_row: np.ndarray,
        items: np.ndarray,
        timestamps: np.ndarray,
        ratings: np.ndarray | None = None,
        clock: bool = True,
    ) -> "Histories":
        """Groups rows in any order; rows of a user with equal timestamps keep their order.

        users: str[U]; user_of_row: int[T] indices into it; the rest as in the class.
        """
        order = np.lexsort((timestamps, user_of_row))
        counts = np.bincount(user_of_row, minlength=len(users))
        return cls(
            users=np.asarray(users, np.str_),
            offsets=np.concatenate([[0], np.cumsum(counts)]),
            items=np.asarray(items)[order],
            timestamps=np.asarray(timestamps)[order],
            ratings=None if ratings is None else np.asarray(ratings)[order],
            clock=clock,
        )

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> np.ndarray:
        """int64[U]."""
        return np.diff(self.offsets)

    @property
    def user_of_row(self) -> np.ndarray:
        """int64[T]: whose interaction each row is."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def of(self, u: int) -> np.ndarray:
        """int32[n] view: the items of user u, oldest first."""
        return self.items[self.offsets[u] : self.offsets[u + 1]]

    def times(self, u: int) -> np.ndarray:
        """float64[n] view: the timestamps of user u."""
        return self.timestamps[self.offsets[u] : self.offsets[u + 1]]

    def select(self, keep: np.ndarray) -> "Histories":
        """The interactions where keep (bool[T]) holds; users left with none disappear."""
        counts = np.bincount(self.user_of_row[keep], minlength=len(self))
        left = np.flatnonzero(counts)
        return replace(
            self,
            users=self.users[left],
            offsets=np.concatenate([[0], np.cumsum(counts[left])]),
            items=self.items[keep],
            timestamps=self.timestamps[keep],
            ratings=None if self.ratings is None else self.ratings[keep],
            stated=None if self.stated is None else self.stated.take(left),
        )

    def by_position(self) -> "Histories":
        """The same with positions 0, 1, 2, ... in place of timestamps."""
        positions = np.arange(len(self.items)) - np.repeat(self.offsets[:-1], self.lengths)
        return replace(self, timestamps=positions, clock=False)


def are_positions(histories: Histories) -> bool:
    """Whether every user's timestamps read 0, 1, 2, ...: an order, not times."""
    starts = np.repeat(histories.offsets[:-1], histories.lengths)
    return bool((histories.timestamps == np.arange(len(starts)) - starts).all())


_HISTORY_TYPES = {
    "users": np.str_,
    "offsets": np.int64,
    "items": np.int32,
    "timestamps": np.float64,
    "ratings": np.float32,
}


@dataclass(frozen=True, eq=False)
class Split:
    """Which interactions are predicted when.

    train, validation, test: int32[n, 2] rows (user index, position): the target is
    `histories.of(user)[position]`, the input everything before it. `train` holds every training
    target at a position >= 1. train_end: int32[U], the training interactions of user u are
    `of(u)[:train_end[u]]`. kind: "leave_one_out" or "global_time". counts: users left out, by why.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    kind: str
    train_end: np.ndarray
    counts: dict[str, int] = field(default_factory=dict)


class Dataset(NamedTuple):
    """Items, interactions in terms of them, and which interactions are predicted when."""

    catalog: Catalog
    histories: Histories
    split: Split
