"""Which of the examples that wait goes into a row, so that rows fill up (*ours*).

Grain's packers bound the images of a row too, but choose a row for each example and take examples
in order: a row then keeps the gap that the next example is too large for. Here a row chooses among
the examples that wait.
"""

import numpy as np


def first_row(used: np.ndarray, needed: np.ndarray, sizes: np.ndarray) -> int | None:
    """The first row with room, None where none has any.

    Args:
      used: int[rows, sizes], what the examples of each row take.
      needed: int[sizes], what the example takes.
      sizes: int[sizes], what a row has.
    """
    fits = (used + needed <= sizes).all(axis=1)
    return int(np.argmax(fits)) if fits.any() else None


def fullest(needed: np.ndarray, left: np.ndarray) -> int | None:
    """The example that fills a row most, alone or with one other, None where none fits; of equal
    ones the first.

    Args:
      needed: int[examples, sizes], what each takes; the first size is the one to be filled.
      left: int[sizes], what the row still has.
    """
    fitting = np.flatnonzero((needed <= left).all(axis=1))
    if not len(fitting):
        return None
    some = needed[fitting]
    pairs = some[:, None] + some[None, :]
    together = (pairs <= left).all(axis=2)
    np.fill_diagonal(together, False)
    filled = np.maximum(some[:, 0], np.where(together, pairs[:, :, 0], 0).max(axis=1))
    return int(fitting[np.argmax(filled)])
