"""The baselines of every table: random, popularity, last-item co-occurrence. Training data only."""

import math

import numpy as np
import scipy.sparse

from mmsrec_jax.data.records import Histories, Split

_MIX = np.uint64(0x9E3779B97F4A7C15)


def training_mask(histories: Histories, split: Split) -> np.ndarray:
    """bool[T]: which interactions are training ones."""
    at = np.arange(len(histories.items)) - np.repeat(histories.offsets[:-1], histories.lengths)
    return at < np.repeat(split.train_end, histories.lengths)


class Random:
    """Uniform scores, a function of (seed, history, item): the same in any chunk and order."""

    name = "random"

    def __init__(self, num_items: int, seed: int):
        self._items = _scramble(np.arange(1, num_items + 1, dtype=np.uint64))
        self._seed = np.uint64(seed)

    def scores(self, histories: np.ndarray, times: np.ndarray | None = None) -> np.ndarray:
        """float32[B, items] in [0, 1); histories int[B, L] padded with -1."""
        key = np.full(len(histories), self._seed, np.uint64)
        for column in np.asarray(histories).T:
            key = np.where(column >= 0, _scramble(key + column.astype(np.uint64)), key)
        mixed = _scramble(_scramble(key)[:, None] ^ self._items[None])
        return (mixed >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)


class Popularity:
    """How often an item occurs in the training interactions; the history is not used."""

    name = "popularity"

    def __init__(self, histories: Histories, split: Split, num_items: int):
        items = histories.items[training_mask(histories, split)]
        self.counts = np.bincount(items, minlength=num_items).astype(np.float32)

    def scores(self, histories: np.ndarray, times: np.ndarray | None = None) -> np.ndarray:
        """float32[B, items]."""
        return np.broadcast_to(self.counts, (len(histories), len(self.counts)))


class Cooccurrence:
    """What followed the last item in training histories, nearer steps counting more (*ours*).

    score(j | last = i) = sum over training histories, and over positions where j comes d =
    1..window steps after i, of 1/d. Popularity, scaled below the smallest difference of two such
    sums, breaks ties and answers for items that nothing followed.
    """

    name = "cooccurrence"

    def __init__(self, histories: Histories, split: Split, num_items: int, *, window: int = 5):
        keep = training_mask(histories, split)
        users, items = histories.user_of_row[keep], histories.items[keep]
        weights = scipy.sparse.csr_matrix((num_items, num_items), dtype=np.float32)
        for distance in range(1, window + 1):
            same = users[distance:] == users[:-distance]
            before, after = items[:-distance][same], items[distance:][same]
            ones = np.full(len(before), 1 / distance, np.float32)
            weights += scipy.sparse.csr_matrix((ones, (before, after)), (num_items, num_items))
        counts = np.bincount(items, minlength=num_items).astype(np.float32)
        self._weights = weights
        self._popularity = (
            counts / (counts.max(initial=0) + 1) * np.float32(0.5 / math.lcm(*range(1, window + 1)))
        )

    def scores(self, histories: np.ndarray, times: np.ndarray | None = None) -> np.ndarray:
        """float32[B, items]; an empty history is answered by popularity."""
        histories = np.asarray(histories)
        known = histories >= 0
        last = histories.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)
        last_item = histories[np.arange(len(histories)), last]
        found = self._weights[np.maximum(last_item, 0)].toarray()
        found[last_item < 0] = 0
        return found + self._popularity


def _scramble(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: neighboring integers to independent-looking 64 bits."""
    with np.errstate(over="ignore"):
        x = x + _MIX
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
