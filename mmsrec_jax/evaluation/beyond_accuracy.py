"""What is recommended, whether it hits or not: coverage, Gini, popularity, novelty of the lists.

`top` is int[n, K] as in `Ranks`; -1 is an empty entry and does not count.
"""

from dataclasses import dataclass

import numpy as np

from mmsrec_jax.data.records import Histories, Split
from mmsrec_jax.evaluation.baselines import training_mask

PER_ROW = ("popularity", "novelty")
OF_ALL_ROWS = ("coverage", "gini")


@dataclass(frozen=True)
class Training:
    """What the training interactions say of the items.

    interactions int64[items]; users int64[items]: distinct users who had the item; num_users: how
    many have any training interaction.
    """

    interactions: np.ndarray
    users: np.ndarray
    num_users: int

    @classmethod
    def of(cls, histories: Histories, split: Split, num_items: int) -> "Training":
        keep = training_mask(histories, split)
        items, users = histories.items[keep].astype(np.int64), histories.user_of_row[keep]
        pairs = np.unique(users * num_items + items)
        return cls(
            interactions=np.bincount(items, minlength=num_items),
            users=np.bincount(pairs % num_items, minlength=num_items),
            num_users=len(np.unique(users)),
        )


def coverage(top: np.ndarray, k: int, training: Training) -> float:
    """Share of the catalog in any row's first k (RecTools' CatalogCoverage, normalized)."""
    listed = top[:, :k]
    return len(np.unique(listed[listed >= 0])) / len(training.interactions)


def gini(top: np.ndarray, k: int, training: Training) -> float:
    """Gini index of how often each item of the catalog is listed, the never listed included.

    0 when all are listed equally often, 1 - 1/items when one item fills every list (RecBole's
    GiniIndex).
    """
    listed = top[:, :k]
    items = len(training.interactions)
    counts = np.sort(np.bincount(listed[listed >= 0], minlength=items))
    weights = 2 * np.arange(1, items + 1) - items - 1
    return float(weights @ counts / (items * max(counts.sum(), 1)))


def popularity(top: np.ndarray, k: int, training: Training) -> np.ndarray:
    """float64[n]: mean number of training interactions of the first k (RecTools' AvgRecPopularity).

    A row without any listed item has 0.
    """
    return _mean_of_listed(top[:, :k], training.interactions)


def novelty(top: np.ndarray, k: int, training: Training) -> np.ndarray:
    """float64[n]: mean self-information -log2(users who had the item / users) of the first k, bits.

    Zhou et al. 2010; RecTools' MeanInvUserFreq, with whom an item that nobody had counts as if one
    user had. A row without any listed item has 0.
    """
    share = np.maximum(training.users, 1) / max(training.num_users, 1)
    return _mean_of_listed(top[:, :k], -np.log2(share))


def _mean_of_listed(listed: np.ndarray, values: np.ndarray) -> np.ndarray:
    known = listed >= 0
    total = np.where(known, values[np.maximum(listed, 0)], 0).sum(1)
    return total / np.maximum(known.sum(1), 1)
