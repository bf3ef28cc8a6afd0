"""Interactions as compact columns, checked against what the publisher's columns hold."""

from collections import Counter
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmsrec_jax.data.published.files import Chunk
from mmsrec_jax.data.records import LONGEST_ID
from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError

Notes = Counter[str]  # what was noticed in the files, with a count

EARLIEST, LATEST = 631_152_000_000, 4_102_444_800_000  # the years 1990 and 2100 in milliseconds
# As a table program writes whole numbers: 31852.0, 1.5e+12.
_FLOAT_ID = r"^[0-9]+\.[0-9]*$|^[0-9](\.[0-9]+)?[eE]\+[0-9]+$"
_LEAST_MATCHING = 0.5  # of the ids of a chunk: with fewer the column is another


@dataclass(frozen=True)
class Ids:
    """What an id of a column looks like.

    pattern: regular expression that it matches. form: the same for people. strict: whether each
    must; else most, and the others are counted. largest: of ids that are numbers, 0 for no limit.
    """

    pattern: str
    form: str
    strict: bool = True
    largest: int = 0


@dataclass(frozen=True)
class Layout:
    """What a publisher's interactions hold.

    milliseconds: whether times are in these, else in seconds.
    ratings: smallest and largest; None where there are none.
    """

    users: Ids
    items: Ids
    milliseconds: bool = False
    ratings: tuple[float, float] | None = None


@dataclass(frozen=True)
class Rows:
    """Consecutive interactions.

    users, items: pa.DictionaryArray[n] of text. times: int64[n], milliseconds since 1970; None
    where a file holds only an order. ratings: float32[n] or None. histories: text[n], the items
    that a published split gives as input of each, separated by spaces, or None.
    """

    users: pa.DictionaryArray
    items: pa.DictionaryArray
    times: np.ndarray | None
    ratings: np.ndarray | None = None
    histories: pa.Array | None = None

    def __len__(self) -> int:
        return len(self.users)


def checked(
    chunk: Chunk,
    layout: Layout,
    notes: Notes,
    users: pa.Array,
    items: pa.Array,
    times: np.ndarray,
    ratings: np.ndarray | None,
    histories: pa.Array | None = None,
) -> Rows:
    """The rows of a chunk. users, items: text[n]; times: float64[n] as in the file.

    Raises:
      UserError: an id is missing, too long, a float or mostly of another form, a time or a rating
        is none; names file and line.
    """
    scale = 1 if layout.milliseconds else 1000
    outside = ~((times >= EARLIEST / scale) & (times <= LATEST / scale))
    if outside.any():
        row, unit = int(outside.argmax()), "milliseconds" if scale == 1 else "seconds"
        _blame(
            chunk, row, f"timestamp {times[row]:.15g} is no time of 1990 to 2100 in {unit} since "
            "1970; are columns swapped, or is the file another?",
        )  # fmt: skip
    if ratings is not None and layout.ratings:
        low, high = layout.ratings
        outside = ~((ratings >= low) & (ratings <= high))
        if outside.any():
            row = int(outside.argmax())
            problem = f"rating {ratings[row]:g} is not from {low:g} to {high:g}"
            _blame(chunk, row, f"{problem}; are columns swapped, or is the file another?")
    return Rows(
        users=_checked_ids(chunk, "user", layout.users, users, notes),
        items=_checked_ids(chunk, "item", layout.items, items, notes),
        times=(times * scale).astype(np.int64),
        ratings=None if ratings is None else ratings.astype(np.float32),
        histories=histories,
    )


def _checked_ids(
    chunk: Chunk, name: str, ids: Ids, column: pa.Array, notes: Notes
) -> pa.DictionaryArray:
    encoded = column.dictionary_encode()
    values = encoded.dictionary
    matches = pc.match_substring_regex(values, ids.pattern)

    def row_of(wrong: pa.Array) -> int:
        codes = np.flatnonzero(wrong.to_numpy(zero_copy_only=False))
        return int(np.isin(encoded.indices.to_numpy(), codes).argmax())

    for wrong, problem in (
        (pc.equal(values, ""), "is empty"),
        (pc.match_substring_regex(values, r"[\x00\r\n]"), "holds a NUL character or a line end"),
        (pc.greater(pc.utf8_length(values), LONGEST_ID), f"is longer than {LONGEST_ID} characters"),
        (
            pc.match_substring_regex(values, _FLOAT_ID),
            "is a number with a point or an exponent: a program has changed the ids; take the "
            "file as it was published",
        ),
    ):
        if pc.any(wrong).as_py():
            _blame_id(chunk, name, column, row_of(wrong), problem)
    right = pc.mean(matches).as_py()
    if right < (1 if ids.strict else _LEAST_MATCHING):
        row = row_of(pc.invert(matches))
        _blame_id(chunk, name, column, row, f"is not {ids.form}; are columns swapped, or leading "
                  "zeros lost?")  # fmt: skip
    if right < 1:
        codes = np.flatnonzero(~matches.to_numpy(zero_copy_only=False))
        count = int(np.isin(encoded.indices.to_numpy(), codes).sum())
        notes[f"interactions whose {name} is not {ids.form}, kept"] += count
    if ids.largest:
        too_large = pc.greater(pc.cast(values, pa.float64()), ids.largest)
        if pc.any(too_large).as_py():
            _blame_id(chunk, name, column, row_of(too_large), f"is above {ids.largest:,}, the "
                      "largest there is; are columns swapped, or is the file another?")  # fmt: skip
    return encoded


def _blame_id(chunk: Chunk, name: str, column: pa.Array, row: int, problem: str) -> NoReturn:
    _blame(chunk, row, f"{name} {reading.shown(column[row].as_py())} {problem}")


def _blame(chunk: Chunk, row: int, problem: str) -> NoReturn:
    raise UserError(f"{chunk.path}:{chunk.line_of_row(row)}: {problem}")
