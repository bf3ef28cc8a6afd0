"""Item sequences as rectangles: outside the models, ids are catalog indices and -1 is padding."""

import numpy as np
import numpy.typing as npt

from mmsrec_jax.data.records import Histories
from mmsrec_jax.runtime.errors import UserError


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`, so that few shapes are compiled."""
    return 1 << max(int(count) - 1, 0).bit_length()


def gather_ragged(
    values: np.ndarray, starts: npt.ArrayLike, lengths: npt.ArrayLike, width: int
) -> np.ndarray:
    """Rows `values[start : start + length]`, right-padded with -1: [R, width].

    float64 for float64 values, else int32.
    """
    dtype = np.float64 if values.dtype == np.float64 else np.int32
    steps = np.arange(width)[None]
    inside = steps < np.asarray(lengths)[:, None]
    if not len(values):
        return np.full(inside.shape, -1, dtype)
    at = np.where(inside, np.asarray(starts)[:, None] + steps, 0)
    return np.where(inside, values[at], -1).astype(dtype)


def before(histories: Histories, rows: np.ndarray, length: int) -> np.ndarray:
    """The last `length` items before each row's target: int32[R, length].

    rows int[R, 2] holds (user, position), as in a Split.
    """
    return _before(histories.items, histories, rows, length)


def times_before(histories: Histories, rows: np.ndarray, length: int) -> np.ndarray:
    """When the items of `before` were taken: float64[R, length], -1 at padding."""
    return _before(histories.timestamps, histories, rows, length)


def _before(values: np.ndarray, histories: Histories, rows: np.ndarray, length: int) -> np.ndarray:
    rows = np.asarray(rows, np.int64)
    start = np.maximum(rows[:, 1] - length, 0)
    return gather_ragged(values, histories.offsets[rows[:, 0]] + start, rows[:, 1] - start, length)


def targets(histories: Histories, rows: np.ndarray) -> np.ndarray:
    """The item at each row's position: int32[R]."""
    rows = np.asarray(rows, np.int64)
    return histories.items[histories.offsets[rows[:, 0]] + rows[:, 1]].astype(np.int32)


def right_padded(
    ids: np.ndarray, length: int, times: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Moves the items of each row to the front, in order, and keeps the last `length` of them.

    ids int[B, L] padded with -1 anywhere; times float64[B, L] or None, moved along with the ids.
    Returns int32[B, length] and float64[B, length] or None.
    """
    packed = np.asarray(ids, np.int32)
    padding = packed < 0
    if (padding[:, :-1] & ~padding[:, 1:]).any():
        order = np.argsort(padding, axis=1, kind="stable")
        packed = np.take_along_axis(packed, order, 1)
        times = None if times is None else np.take_along_axis(np.asarray(times), order, 1)
    counts = packed.shape[1] - padding.sum(1)
    start = np.maximum(counts - length, 0)
    starts = np.arange(len(packed)) * packed.shape[1] + start
    moved = gather_ragged(packed.ravel(), starts, counts - start, length)
    if times is None:
        return moved, None
    times = np.asarray(times, np.float64)
    return moved, gather_ragged(times.ravel(), starts, counts - start, length)


def seconds(times: np.ndarray) -> np.ndarray:
    """Seconds since 1970 as int32. Raises UserError when they do not fit: a unit such as ms."""
    times = np.floor(times)
    limits = np.iinfo(np.int32)
    if times.size and not (limits.min <= times.min() and times.max() <= limits.max):
        raise UserError(
            f"timestamps reach {times.max():.0f}, which is no number of seconds since 1970; "
            "convert the column of the .inter file to seconds"
        )
    return times.astype(np.int32)
