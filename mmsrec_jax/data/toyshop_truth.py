"""The two rows of the toyshop that are known exactly: `oracle` and `bayes_optimal` (*ours*).

The taste is a hidden Markov state with finitely many values, so its posterior given a history is
exact: the forward algorithm. The transition after a choice depends on the chosen item's group.
"""

import dataclasses
import itertools

import numpy as np

from mmsrec_jax.data.records import Histories
from mmsrec_jax.data.toyshop import IMAGE_FACTORS, TEXT_FACTORS, World

_PERMUTATIONS = 24


@dataclasses.dataclass(frozen=True)
class Observer:
    """What a perfect recommender may use: each signal can be taken away.

    Attributes:
      images, texts: the factors that only pictures show, or only texts name.
      groups: where items lead, known from what users choose one after another.
      order: which of the history's items came when.
    """

    images: bool = True
    texts: bool = True
    groups: bool = True
    order: bool = True


class Truth:
    """Choice probabilities of a world as one observer sees it."""

    def __init__(self, world: World, observer: Observer | None = None):
        self._world, self._observer = world, observer or Observer()
        names = (IMAGE_FACTORS if self._observer.images else ()) + (
            TEXT_FACTORS if self._observer.texts else ()
        )
        self._columns = [world.factors.index(name) for name in names]
        self._sizes = tuple(world.sizes[column] for column in self._columns)
        states = np.array(list(itertools.product(*map(range, self._sizes))))
        logits = np.broadcast_to(world.popularity, (len(states), len(world.groups))).copy()
        for column, name in enumerate(names):
            logits += world.weights[name] * (states[:, column, None] == world.attributes[name])
        self._utility = np.exp(logits)  # [states, items]
        self._transitions = [self._transition(group) for group in range(len(world.leads_to))]
        if not self._observer.groups:
            members = np.bincount(world.groups, minlength=len(world.leads_to))
            mean = np.tensordot(members / members.sum(), np.array(self._transitions), axes=1)
            self._transitions = [mean] * len(world.leads_to)

    def bayes_optimal(self, history: np.ndarray) -> np.ndarray:
        """Probability of every item to be chosen next, given `history` int[n] and no more.

        The posterior mean over tastes: no recommender that sees only the history does better on
        average. Without order, the mean over permutations of the history. float64[items].
        """
        if self._observer.order or len(history) < 2:
            return self._filter(history)[0]
        rng = np.random.default_rng(len(history))
        orders = [self._filter(rng.permutation(history)) for _ in range(_PERMUTATIONS)]
        evidence = np.array([log_likelihood for _, log_likelihood in orders])
        weights = np.exp(evidence - evidence.max())
        return weights @ np.array([prediction for prediction, _ in orders]) / weights.sum()

    def oracle(self, taste: np.ndarray, history: np.ndarray) -> np.ndarray:
        """Probability of every item when the taste int[4] behind the choice is known."""
        state = np.ravel_multi_index(tuple(taste[self._columns]), self._sizes)
        scores = self._utility[state].copy()
        scores[history] = 0.0
        return scores / scores.sum()

    def _filter(self, history: np.ndarray) -> tuple[np.ndarray, float]:
        """Predicted next choice [items] and the log likelihood of the history."""
        belief = np.full(len(self._utility), 1.0 / len(self._utility))
        normalizer = self._utility.sum(1)
        log_likelihood = 0.0
        for item in history:
            belief = belief * self._utility[:, item] / normalizer
            total = belief.sum()
            log_likelihood += float(np.log(total))
            belief = (belief / total) @ self._transitions[self._world.groups[item]]
            normalizer = normalizer - self._utility[:, item]
        scores = (belief / normalizer) @ self._utility
        scores[history] = 0.0
        return scores, log_likelihood

    def _transition(self, group: int) -> np.ndarray:
        """[states, states]: each favorite follows the group, is redrawn, or stays."""
        pull, drift = self._world.pull, self._world.drift
        matrix: np.ndarray = np.ones((1, 1))
        for column, size in zip(self._columns, self._sizes, strict=True):
            factor = (1.0 - pull - drift) * np.eye(size) + drift / size
            factor[:, self._world.leads_to[group, column]] += pull
            matrix = np.kron(matrix, factor)
        return matrix


def bayes_optimal_scores(
    world: World, histories: Histories, rows: np.ndarray, observer: Observer | None = None
) -> np.ndarray:
    """float32[n, items] for rows int32[n, 2] of (user, position): history = all before it."""
    truth = Truth(world, observer)
    return np.stack([truth.bayes_optimal(histories.of(u)[:p]) for u, p in rows]).astype(np.float32)


def oracle_scores(world: World, histories: Histories, rows: np.ndarray) -> np.ndarray:
    """float32[n, items]: true choice probabilities behind each target."""
    truth = Truth(world)
    return np.stack(
        [truth.oracle(world.tastes[histories.offsets[u] + p], histories.of(u)[:p]) for u, p in rows]
    ).astype(np.float32)
