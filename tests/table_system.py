"""A system that looks scores up by the last item, and histories to rank with it."""

import numpy as np

from mmsrec_jax.data.records import Histories

ITEMS = 40


class Table:
    """Scores depend on the last item only; small integers, so that ties abound."""

    name = "table"

    def __init__(self, values):
        self.values = np.asarray(values, np.float32)

    @classmethod
    def random(cls):
        return cls(np.random.default_rng(1).integers(0, 8, (ITEMS, ITEMS)))

    def scores(self, histories, times=None):
        last = (histories >= 0).sum(1) - 1
        return self.values[histories[np.arange(len(histories)), last]]


def histories():
    """130 users, with repeated purchases, of the target as well."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 25, 130)
    return Histories.from_rows(
        np.arange(130).astype(str),
        np.repeat(np.arange(130), lengths),
        rng.integers(0, ITEMS, lengths.sum()),
        np.concatenate([np.arange(n) for n in lengths]),
    )


def last_rows(histories):
    """int32[users, 2]: the last interaction of each."""
    users = np.arange(len(histories))
    return np.stack([users, histories.lengths - 1], 1).astype(np.int32)
