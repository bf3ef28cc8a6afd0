"""Scorers that match the words of a candidate with the words of a prompt's lists (*ours*).

A prompt lists the user's last items and, with retrieval, what similar users took next. Each of
these is a place; the score of a candidate is the sum over places of the place's weight times the
number of words that the candidate shares with the item there. Nothing else is read: a model that
reads the same prompt should do better. Where the prompt tells ratings or pauses, a place can have a
further weight for each (`told`).
"""

from collections.abc import Collection, Sequence

import numpy as np
import scipy.sparse

from mmsrec_jax.data.records import Histories
from mmsrec_jax.evaluation import conditional_logit, protocols
from mmsrec_jax.prompts import choices

DECAY = 0.8
_GRID = 2.0**-12  # of weights: sums of so few multiples are exact, so that equal evidence ties
_PAIRS = 1 << 19  # pairs of items whose words are compared at a time


def incidence(words: Sequence[Collection[str]]) -> scipy.sparse.csr_matrix:
    """float32[items, words]: 1 where an item has a word, however often."""
    index: dict[str, int] = {}
    columns = [
        sorted({index.setdefault(word, len(index)) for word in of_item}) for of_item in words
    ]
    ends = np.cumsum([0, *map(len, columns)])
    flat = np.fromiter((column for row in columns for column in row), np.int32, int(ends[-1]))
    ones = np.ones(len(flat), np.float32)
    return scipy.sparse.csr_matrix((ones, flat, ends), (len(columns), max(len(index), 1)))


def places(
    histories: Histories, rows: np.ndarray, *, history: int, neighbors: np.ndarray | None
) -> np.ndarray:
    """The items that a prompt lists: int32[R, history + k], -1 where there is none.

    The last `history` items before each row's target, the latest first, then the row's neighbors.

    Args:
      rows: int32[R, 2] (user, position).
      neighbors: int32[R, k], most similar first; None without retrieval.
    """
    rows = np.asarray(rows, np.int64)
    at = rows[:, 1:] - 1 - np.arange(history)
    known = at >= 0
    latest = histories.items[np.where(known, histories.offsets[rows[:, :1]] + at, 0)]
    latest = np.where(known, latest, -1).astype(np.int32)
    return latest if neighbors is None else np.concatenate([latest, neighbors], axis=1)


def told(
    histories: Histories, rows: np.ndarray, *, history: int, ratings: bool, pauses: bool
) -> np.ndarray:
    """The places of the history again, by what a prompt tells of the choices: int32[R, columns].

    With `ratings` there is one copy of the places for each fifth of all ratings (fewer where they
    fall together), which holds the items that were rated so. With `pauses` there is one that holds
    the items before the last pause that is told, up to the time of the row's target. -1 elsewhere.
    """
    latest = places(histories, rows, history=history, neighbors=None)
    rows = np.asarray(rows, np.int64)
    target = histories.offsets[rows[:, 0]] + rows[:, 1]
    at = np.where(latest >= 0, target[:, None] - 1 - np.arange(history), 0)
    copies = [np.zeros((len(rows), 0), np.int32)]
    if ratings and histories.ratings is not None:
        edges = np.unique(np.nanquantile(histories.ratings, [0.2, 0.4, 0.6, 0.8]))
        edges = edges[edges < np.nanmax(histories.ratings)]  # nothing is above the highest
        rated = histories.ratings[at]
        fifth = np.where(np.isnan(rated), -1, np.searchsorted(edges, rated))
        copies += [np.where(fifth == one, latest, -1) for one in range(len(edges) + 1)]
    if pauses and histories.clock:
        times = histories.timestamps
        paused = times[np.minimum(at + 1, target[:, None])] - times[at] >= choices.SHORTEST
        copies.append(np.where(np.cumsum(paused, axis=1) > 0, latest, -1))
    return np.concatenate(copies, axis=1).astype(np.int32)


def shared(incidence: scipy.sparse.csr_matrix, items: np.ndarray, listed: np.ndarray) -> np.ndarray:
    """How many words each candidate shares with each place: float32[R, C, P].

    items: int32[R, C], candidates; listed: int32[R, P], as from `places`.
    """
    nothing = scipy.sparse.csr_matrix((1, incidence.shape[1]), dtype=np.float32)
    words = scipy.sparse.vstack([incidence, nothing]).tocsr()  # row -1: no item, no words
    found = np.zeros((*items.shape, listed.shape[1]), np.float32)
    step = max(_PAIRS // max(items.shape[1] * listed.shape[1], 1), 1)
    for start in range(0, len(items), step):
        part = found[start : start + step]
        one = np.broadcast_to(items[start : start + step, :, None], part.shape).ravel()
        other = np.broadcast_to(listed[start : start + step, None], part.shape).ravel()
        both = words[one].multiply(words[other])
        part[:] = np.asarray(both.sum(axis=1)).reshape(part.shape)
    return found


def decaying(history: int, neighbors: int) -> np.ndarray:
    """Weights float64[history + neighbors] that nothing is fitted for: `DECAY` a step back, 1 for
    what similar users took."""
    return np.concatenate([DECAY ** np.arange(history), np.ones(neighbors)])


def fitted(
    incidence: scipy.sparse.csr_matrix,
    histories: Histories,
    rows: np.ndarray,
    listed: np.ndarray,
    *,
    negatives: int,
    seed: int,
) -> np.ndarray:
    """Weights float64[P] by conditional logit on the candidate lists of these rows.

    Lists are drawn as those of the test are, but of what was known at the time: what a user took
    after a row's target decides nothing.

    Args:
      rows: int32[R, 2] (user, position), validation targets.
      listed: int32[R, P], as from `places`.
    """
    lists = protocols.sampled(
        protocols.up_to(histories, rows), rows, n=negatives, seed=seed, num_items=incidence.shape[0]
    )
    return conditional_logit.fit(shared(incidence, lists.items, listed), lists.positive)


class KeywordScorer:
    """A `ranking.RowSystem` for the rows of `listed`.

    Args:
      incidence: float32[items, words], as from `incidence`.
      listed: int32[R, P], as from `places`.
      weights: float[P].
    """

    def __init__(
        self,
        name: str,
        incidence: scipy.sparse.csr_matrix,
        listed: np.ndarray,
        weights: np.ndarray,
    ):
        self.name = name
        self.weights = (np.round(np.asarray(weights) / _GRID) * _GRID).astype(np.float32)
        self._incidence, self._listed = incidence, listed

    def row_scores(self, at: np.ndarray) -> np.ndarray:
        """float32[B, items] for the rows of these numbers, int[B]."""
        listed = self._listed[at]
        row, place = np.nonzero(listed >= 0)
        shape = (len(listed), self._incidence.shape[0])
        items = listed[row, place]
        lists = scipy.sparse.csr_matrix((self.weights[place], (row, items)), shape)
        wanted = (lists @ self._incidence).toarray()  # weight of every word, [B, words]
        return (self._incidence @ wanted.T).T
