"""Item sequences as rectangles: outside the heads, ids are catalogue indices and -1 is padding."""

import numpy as np


def gather_ragged(values: np.ndarray, starts, lengths, width: int) -> np.ndarray:
    """Rows `values[start : start + length]` as int32[R, width], right-padded with -1."""
    steps = np.arange(width)[None]
    inside = steps < np.asarray(lengths)[:, None]
    if not len(values):
        return np.full(inside.shape, -1, np.int32)
    at = np.where(inside, np.asarray(starts)[:, None] + steps, 0)
    return np.where(inside, values[at], -1).astype(np.int32)


def before(histories, rows: np.ndarray, length: int) -> np.ndarray:
    """The last `length` items before each row's target: int32[R, length].

    rows int[R, 2] holds (user, position), as in a Split.
    """
    rows = np.asarray(rows, np.int64)
    start = np.maximum(rows[:, 1] - length, 0)
    return gather_ragged(
        histories.items, histories.offsets[rows[:, 0]] + start, rows[:, 1] - start, length
    )


def targets(histories, rows: np.ndarray) -> np.ndarray:
    """The item at each row's position: int32[R]."""
    rows = np.asarray(rows, np.int64)
    return histories.items[histories.offsets[rows[:, 0]] + rows[:, 1]].astype(np.int32)


def right_padded(ids: np.ndarray, length: int) -> np.ndarray:
    """Moves the items of each row to the front, in order, and keeps the last `length` of them.

    ids int[B, L] padded with -1 anywhere. Returns int32[B, length].
    """
    packed = np.asarray(ids, np.int32)
    padding = packed < 0
    if (padding[:, :-1] & ~padding[:, 1:]).any():
        packed = np.take_along_axis(packed, np.argsort(padding, axis=1, kind="stable"), 1)
    counts = packed.shape[1] - padding.sum(1)
    start = np.maximum(counts - length, 0)
    return gather_ragged(
        packed.ravel(), np.arange(len(packed)) * packed.shape[1] + start, counts - start, length
    )
