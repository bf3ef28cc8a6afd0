"""Two systems as one: a weighted sum of their scores of the whole catalog (*ours*)."""

import jax
import jax.numpy as jnp
import numpy as np

from mmsrec_jax.data import sequences
from mmsrec_jax.data.records import Histories
from mmsrec_jax.evaluation import conditional_logit
from mmsrec_jax.evaluation.ranking import RowSystem, System
from mmsrec_jax.runtime import arrays

_ROWS_AT_A_TIME = 64


class Fused:
    """A `ranking.RowSystem` made of one and of a system that reads histories.

    rows: int32[R, 2] (user, position), those that `of_rows` was made for.
    weights: of the scores of each.
    """

    def __init__(
        self,
        name: str,
        of_rows: RowSystem,
        of_histories: System,
        histories: Histories,
        rows: np.ndarray,
        weights: np.ndarray,
    ):
        self._name, self._of_rows, self._of_histories = name, of_rows, of_histories
        self._histories, self._rows, self._weights = histories, rows, weights

    @property
    def name(self) -> str:
        return self._name

    def row_scores(self, at: np.ndarray) -> jax.Array:
        first = jnp.asarray(self._of_rows.row_scores(at))
        second = _scores(self._of_histories, self._histories, self._rows, at)
        return float(self._weights[0]) * first + float(self._weights[1]) * second


def fit(
    of_rows: RowSystem, of_histories: System, histories: Histories, rows: np.ndarray
) -> np.ndarray:
    """float64[2]: weights by conditional logit on the targets of validation rows int32[R, 2].

    A small penalty pulls them to (1, 0). What a user had before does not compete.
    """
    found = []
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        at = np.arange(start, start + _ROWS_AT_A_TIME).clip(max=len(rows) - 1)  # the last fills up
        both = of_rows.row_scores(at), _scores(of_histories, histories, rows, at)
        scores = [arrays.fetch(jnp.asarray(x))[: len(rows) - start] for x in both]
        found.append(np.stack(scores, axis=-1))
    features = np.concatenate(found)
    targets = sequences.targets(histories, rows)
    present = np.ones(features.shape[:2], bool)
    for row, (user, position) in enumerate(rows):
        present[row, histories.of(user)[:position]] = False
    present[np.arange(len(rows)), targets] = True
    return conditional_logit.fit(features, targets, present=present, prior=np.array([1.0, 0.0]))


def _scores(system: System, histories: Histories, rows: np.ndarray, at: np.ndarray) -> jax.Array:
    longest = max(int(rows[:, 1].max(initial=1)), 1)
    past = sequences.before(histories, rows[at], longest)
    return jnp.asarray(system.scores(past, sequences.times_before(histories, rows[at], longest)))
