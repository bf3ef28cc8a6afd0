"""The two rows of the toyshop that are known exactly: `oracle` and `attainable` (*ours*).

The taste is a hidden Markov state with finitely many values, so its posterior given a history
is exact: a forward filter over (content taste, group taste). Contents and groups couple only
through the normaliser of the choice, `Z(c, g) = sum_i C[c, i] (1 + boost [g_i = g])`, which keeps
the filter at `content tastes x groups` numbers a user.
"""

import dataclasses
import itertools

import numpy as np

from mmsrec_jax.data.records import Histories
from mmsrec_jax.data.toyshop import IMAGE_FACTORS, TEXT_FACTORS, World

_PERMUTATIONS = 24


@dataclasses.dataclass(frozen=True)
class Observer:
    """What a perfect recommender may use: each signal can be taken away."""

    images: bool = True
    texts: bool = True
    groups: bool = True
    order: bool = True


class Truth:
    """Choice probabilities of a world as one observer sees it."""

    def __init__(self, world: World, observer: Observer | None = None):
        observer = observer or Observer()
        self._order, self._drift = observer.order, world.drift
        seen = (IMAGE_FACTORS if observer.images else ()) + (TEXT_FACTORS if observer.texts else ())
        self._columns = [world.factors.index(name) for name in seen]
        self._sizes = tuple(world.sizes[c] for c in self._columns)
        states = np.array(list(itertools.product(*map(range, self._sizes)))).reshape(
            -1, len(self._sizes)
        )
        logits = np.broadcast_to(world.popularity, (len(states), len(world.groups))).copy()
        for column, name in enumerate(seen):
            logits += world.weights[name] * (states[:, column, None] == world.attributes[name])
        self._content = np.exp(logits).astype(np.float32)  # [C, items]
        self._groups = world.groups if observer.groups else np.zeros_like(world.groups)
        self._boost = np.expm1(world.weights["group"]) if observer.groups else 0.0
        self._num_groups = int(self._groups.max()) + 1
        member = np.eye(self._num_groups, dtype=np.float32)[self._groups]  # [items, G]
        self._normaliser = (
            self._content.sum(1, keepdims=True) + self._boost * self._content @ member
        )

    def attainable(self, history: np.ndarray) -> np.ndarray:
        """Probability of every item to be chosen next, given `history` int[n] and no more.

        The posterior mean over tastes: no recommender that sees only the history does better on
        average. Without order, the mean over permutations of the history.
        """
        if self._order or len(history) < 2:
            return self._predict(*self._filter(history))
        rng = np.random.default_rng(len(history))
        total, evidence = np.zeros(self._content.shape[1]), 0.0
        for _ in range(_PERMUTATIONS):
            posterior, normaliser, log_likelihood = self._filter(rng.permutation(history), True)
            weight = np.exp(log_likelihood + 5.0 * len(history))
            total += weight * self._predict(posterior, normaliser)
            evidence += weight
        return total / evidence

    def oracle(self, taste: np.ndarray, history: np.ndarray) -> np.ndarray:
        """Probability of every item for a user whose taste int[5] behind the choice is known."""
        content = taste[self._columns]
        state = int(np.ravel_multi_index(tuple(content), self._sizes))
        boost = 1.0 + self._boost * (self._groups == taste[-1])
        scores = self._content[state] * boost
        scores[history] = 0.0
        return scores / scores.sum()

    def _filter(self, history: np.ndarray, with_evidence: bool = False):
        """Taste posterior before the next choice [C, G], its normaliser [C, G], log evidence."""
        shape = (self._content.shape[0], self._num_groups)
        posterior = np.full(shape, 1.0 / np.prod(shape), np.float32)
        normaliser = self._normaliser.copy()
        log_likelihood = 0.0
        for item in history:
            posterior = self._transition(posterior)
            column, group = self._content[:, item], self._groups[item]
            joint = posterior / normaliser * column[:, None]
            joint[:, group] *= 1.0 + self._boost
            total = joint.sum()
            posterior = joint / total
            log_likelihood += float(np.log(total))
            normaliser -= column[:, None]
            normaliser[:, group] -= self._boost * column
        posterior = self._transition(posterior)
        return (posterior, normaliser, log_likelihood) if with_evidence else (posterior, normaliser)

    def _transition(self, posterior: np.ndarray) -> np.ndarray:
        """Each factor stays with probability 1 - drift, else is redrawn uniformly."""
        p = posterior.reshape(*self._sizes, self._num_groups)
        for axis in range(p.ndim):
            p = (1.0 - self._drift) * p + self._drift * p.mean(axis, keepdims=True)
        return p.reshape(posterior.shape)

    def _predict(self, posterior: np.ndarray, normaliser: np.ndarray) -> np.ndarray:
        weighted = posterior / normaliser  # [C, G]
        by_content = self._content.T @ weighted.sum(1)
        if not self._boost:
            return by_content
        return by_content + self._boost * np.einsum(
            "ci,ci->i", self._content, weighted[:, self._groups]
        )


def attainable_scores(
    world: World, histories: Histories, rows: np.ndarray, observer: Observer | None = None
) -> np.ndarray:
    """float32[n, items] for rows int32[n, 2] of (user, position): history = all before it."""
    truth = Truth(world, observer)
    return np.stack([truth.attainable(histories.of(u)[:p]) for u, p in rows]).astype(np.float32)


def oracle_scores(world: World, histories: Histories, rows: np.ndarray) -> np.ndarray:
    """float32[n, items]: true choice probabilities behind each target."""
    truth = Truth(world)
    return np.stack(
        [truth.oracle(world.tastes[histories.offsets[u] + p], histories.of(u)[:p]) for u, p in rows]
    ).astype(np.float32)
