"""What a toyshop allows to know: the rows `oracle` and `bayes_optimal`, by observer (*ours*).

Profile and mood are a hidden Markov state with finitely many values, so that their posterior given
a history is exact: the forward algorithm, here for many histories at a time.
"""

import dataclasses
import itertools
import math

import numpy as np

from mmsrec_jax.data import sequences
from mmsrec_jax.data.records import Histories
from mmsrec_jax.data.toyshop import KINDS, LOOKS, MOODS, RATINGS, STATES, World, fitting

TASTES = int(np.prod(STATES[:-2]))  # values of the state without usual occasion and mood
_PERMUTATIONS = 24
_CHUNK = 128  # histories filtered at a time


@dataclasses.dataclass(frozen=True)
class Observer:
    """What a perfect recommender may use: each signal can be taken away.

    Attributes:
      images, texts: what only pictures show (the look), or only texts tell (occasion, material).
      groups: where items lead, known from what users choose one after another.
      clock: when the choices were made and when the next one is. Without it their order is left.
      now: when the next choice is made, the time of the request.
      order: which of the history's items came when.
      ratings: how the user rated the choices.
      last: how many of the latest choices are known; 0 is all.
    """

    images: bool = True
    texts: bool = True
    groups: bool = True
    clock: bool = True
    now: bool = True
    order: bool = True
    ratings: bool = True
    last: int = 0


@dataclasses.dataclass(frozen=True)
class Past:
    """Histories as rectangles; right-padded with -1.

    items int32[B, L], times float64[B, L], ratings int32[B, L] (1 to 5), now float64[B]: when the
    next choice is made.
    """

    items: np.ndarray
    times: np.ndarray
    ratings: np.ndarray
    now: np.ndarray

    @classmethod
    def of(cls, histories: Histories, rows: np.ndarray, last: int = 0) -> "Past":
        """The past of rows int32[B, 2] (user, position): all before the position, or the last."""
        rows = np.asarray(rows, np.int64)
        starts = np.maximum(rows[:, 1] - last, 0) if last else np.zeros(len(rows), np.int64)
        begins = histories.offsets[rows[:, 0]]
        now = histories.timestamps[begins + rows[:, 1]]
        return cls.between(histories, begins + starts, rows[:, 1] - starts, now)

    @classmethod
    def between(
        cls, histories: Histories, first: np.ndarray, counts: np.ndarray, now: np.ndarray
    ) -> "Past":
        """`counts` int[B] interactions from number `first` int[B] on."""
        assert histories.ratings is not None
        items, times, ratings = (
            sequences.gather_ragged(values, first, counts, int(counts.max(initial=1)))
            for values in (histories.items, histories.timestamps, histories.ratings.astype(int))
        )
        return cls(items, times, ratings, now)

    def __getitem__(self, at: np.ndarray | slice) -> "Past":
        return Past(self.items[at], self.times[at], self.ratings[at], self.now[at])


class Truth:
    """Choice probabilities of a world as one observer sees it.

    Args:
      leads: float[items, MOODS], the belief where each item leads; None takes the world's groups.
    """

    def __init__(
        self, world: World, observer: Observer | None = None, leads: np.ndarray | None = None
    ):
        self.world, self.observer = world, observer or Observer()
        told = np.eye(MOODS)[world.leads_to[world.groups]] if leads is None else leads
        if not self.observer.groups:
            told = np.broadcast_to(told.mean(0), told.shape)
        self._leads = told.astype(np.float32)
        self._redrawn = world.redrawn.astype(np.float32)
        self._kinds, self._kind_names = self._seen_kinds()
        self._weight = np.exp(world.popularity)
        self._evidence = self._seen_evidence()  # [kinds, ratings, states]
        self._utility = self._evidence.sum(1)  # [kinds, states]
        self._opening = np.unique(world.offered)
        on_offer = world.offered <= self._opening[:, None]
        self._mass = np.stack([self._per_kind(self._weight * known) for known in on_offer])

    def bayes_optimal(self, past: Past) -> np.ndarray:
        """Probability of every item to be chosen next, given the past and no more.

        The posterior mean over states: no recommender that sees only the history does better on
        average. Without order, the mean over permutations of the history. float32[B, items].
        """
        found = np.empty((len(past.now), len(self._kinds)), np.float32)
        if self.observer.order:
            for start in range(0, len(found), _CHUNK):
                part = past[start : start + _CHUNK]
                found[start : start + _CHUNK] = self._predict(part, *self.filter(part)[:2])
            return found
        for row in range(len(found)):
            orders = _orders(past[row : row + 1])
            belief, open_mass, log_likelihood = self.filter(orders)
            weights = np.exp(log_likelihood - log_likelihood.max())
            mixed = weights @ self._predict(orders, belief, open_mass)
            found[row] = mixed / weights.sum()
        return found

    def oracle(self, states: np.ndarray, past: Past) -> np.ndarray:
        """Probability of every item when the states int[B, 5] behind the choices are known.

        float32[B, items].
        """
        belief = np.zeros((len(states), self._utility.shape[1]), np.float32)
        belief[np.arange(len(states)), np.ravel_multi_index(tuple(states.T), STATES)] = 1.0
        return self._predict(past, belief, self._open_mass(past.items, past.now))

    def filter(self, past: Past) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Belief in every state when the next choice is made, float32[B, states]; weight of every
        kind of item among those that can be chosen then, float64[B, kinds]; log p(past)."""
        belief = self.prior(len(past.now))
        log_likelihood = np.zeros(len(past.now))
        lengths = (past.items >= 0).sum(1)
        for step in range(past.items.shape[1]):
            rows = np.flatnonzero(step < lengths)
            belief[rows] *= self.likelihood(past[rows], step)
            total = belief[rows].sum(1, keepdims=True)
            log_likelihood[rows] += np.log(total[:, 0])
            belief[rows] = self.moved(belief[rows] / total, past[rows], step)
        return belief, self._open_mass(past.items, past.now), log_likelihood

    def prior(self, count: int) -> np.ndarray:
        """float32[count, states]: before the first choice."""
        alike = self.world.one_look
        looks = ((1 - alike) / LOOKS + alike * np.eye(LOOKS)) / LOOKS
        tastes = np.repeat(looks.ravel() / KINDS[2], KINDS[2])
        moods = np.broadcast_to(
            tastes[:, None, None] * self.world.redrawn / MOODS, (count, TASTES, MOODS, MOODS)
        )
        return moods.reshape(count, -1).astype(np.float32)

    def likelihood(self, past: Past, step: int) -> np.ndarray:
        """p(choice and rating number `step` | state), float32[B, states]."""
        items = past.items[:, step]
        ratings = past.ratings[:, step] - 1 if self.observer.ratings else 0
        table = self._evidence if self.observer.ratings else self._utility[:, None]
        open_mass = self._open_mass(past.items[:, :step], past.times[:, step])
        found = table[self._kinds[items], ratings]
        found *= self._weight[items].astype(np.float32)[:, None]
        found /= self._normalizer(open_mass)
        return found

    def survival(self, past: Past, step: int) -> np.ndarray:
        """float32[B]: probability that a mood survives from choice `step` to the next one."""
        if not self.observer.clock:
            return np.full(len(past.now), self.world.mean_survival, np.float32)
        is_last = (past.items >= 0).sum(1) == step + 1
        until = past.now if step + 1 == past.times.shape[1] else past.times[:, step + 1]
        survival = self.world.survival(np.where(is_last, past.now, until) - past.times[:, step])
        if not self.observer.now:
            survival = np.where(is_last, self.world.mean_survival, survival)
        return survival.astype(np.float32)

    def moved(self, belief: np.ndarray, past: Past, step: int) -> np.ndarray:
        """The belief after choice `step` has led the mood and the time to the next one is over."""
        pull, kept = self.world.pull, self.survival(past, step)[:, None, None, None]
        moods = belief.reshape(-1, TASTES, MOODS, MOODS)
        profiles = moods.sum(3, keepdims=True)
        leads = self._leads[past.items[:, step]][:, None, None]
        fresh = kept * pull * leads + (1 - kept) * self._redrawn
        moved = profiles * fresh
        moved += kept * (1 - pull) * moods
        return moved.reshape(belief.shape)

    def _predict(self, past: Past, belief: np.ndarray, open_mass: np.ndarray) -> np.ndarray:
        by_kind = (belief / self._normalizer(open_mass)) @ self._utility.T
        scores = by_kind[:, self._kinds] * self._weight.astype(np.float32)
        scores[self.world.offered > past.now[:, None]] = 0.0
        row, column = np.nonzero(past.items >= 0)
        scores[row, past.items[row, column]] = 0.0
        return scores

    def _normalizer(self, open_mass: np.ndarray) -> np.ndarray:
        return open_mass.astype(np.float32) @ self._utility

    def _open_mass(self, taken: np.ndarray, now: np.ndarray) -> np.ndarray:
        """float64[B, kinds]: the weight of each kind that is on offer now and not yet taken."""
        mass = self._mass[np.searchsorted(self._opening, now, side="right") - 1].copy()
        row, column = np.nonzero(taken >= 0)
        items = taken[row, column]
        np.subtract.at(mass, (row, self._kinds[items]), self._weight[items])
        return mass

    def _per_kind(self, weight: np.ndarray) -> np.ndarray:
        return np.bincount(self._kinds, weight, minlength=len(self._kind_names))

    def _seen_kinds(self) -> tuple[np.ndarray, np.ndarray]:
        """Kind of every item as far as the observer sees it: int[items], and what it names."""
        occasion, look, material = self.world.kinds.T
        none = np.zeros_like(occasion)
        if not self.observer.texts:
            occasion = material = none
        if not self.observer.images:
            look = none
        seen = np.ravel_multi_index((occasion, look, material), KINDS)
        names, kinds = np.unique(seen, return_inverse=True)
        return kinds, names

    def _seen_evidence(self) -> np.ndarray:
        """exp(utility) * p(rating) of the kinds that are seen: float32[kinds, ratings, states].

        Of kinds that look alike to the observer, the mean by their popularity.
        """
        true_kinds = np.ravel_multi_index(self.world.kinds.T, KINDS)
        shape = (len(self._kind_names), int(np.prod(KINDS)))
        shares = np.zeros(shape)
        np.add.at(shares, (self._kinds, true_kinds), self._weight)
        shares /= shares.sum(1, keepdims=True)
        every_kind = np.array(list(itertools.product(*map(range, KINDS))))
        fits = fitting(every_kind[:, None], all_states())
        logit = np.array([self.world.weights[name] for name in ("occasion", "look", "material")])
        utility = np.exp(fits @ logit)
        _, look, material = np.moveaxis(fits.astype(int), -1, 0)
        found = np.empty((shape[0], RATINGS.shape[-1], utility.shape[1]), np.float32)
        for rating, likely in enumerate(np.moveaxis(RATINGS, -1, 0)):
            found[:, rating] = shares @ (utility * likely[look, material])
        return found


def all_states() -> np.ndarray:
    """int[states, 5] in the order of the beliefs: the mood changes fastest."""
    return np.array(list(itertools.product(*map(range, STATES))))


def _orders(past: Past) -> Past:
    """Every order of one past if these are few, else some; the times stay in place."""
    count = int((past.items >= 0).sum())
    if math.factorial(count) <= _PERMUTATIONS:
        orders = np.array(list(itertools.permutations(range(count))), np.int64)
    else:
        rng = np.random.default_rng(count)
        orders = rng.permuted(np.tile(np.arange(count), (_PERMUTATIONS, 1)), axis=1)
    return Past(
        past.items[0, orders],
        np.repeat(past.times[:, :count], len(orders), axis=0),
        past.ratings[0, orders],
        np.repeat(past.now, len(orders)),
    )


def bayes_optimal_scores(
    world: World,
    histories: Histories,
    rows: np.ndarray,
    observer: Observer | None = None,
    leads: np.ndarray | None = None,
) -> np.ndarray:
    """float32[n, items] for rows int32[n, 2] of (user, position): history = all before it."""
    truth = Truth(world, observer, leads)
    return truth.bayes_optimal(Past.of(histories, rows, truth.observer.last))


def oracle_scores(world: World, histories: Histories, rows: np.ndarray) -> np.ndarray:
    """float32[n, items]: true choice probabilities behind each target."""
    states = world.states[histories.offsets[rows[:, 0]] + rows[:, 1]]
    return Truth(world).oracle(states, Past.of(histories, rows))
