"""Full-catalog ranks of a scorer that is slow: it reorders another's best items.

Items beyond the first K keep the other's order behind them, so that a rank is exact (*ours*).
"""

import jax
import jax.numpy as jnp
import numpy as np

from mmsrec_jax.data import sequences
from mmsrec_jax.data.records import Histories
from mmsrec_jax.evaluation import conditional_logit
from mmsrec_jax.evaluation.metrics import Ranks
from mmsrec_jax.evaluation.ranking import System, check_scores
from mmsrec_jax.runtime import arrays


def rerank(name: str, first: Ranks, scores: np.ndarray, *, top: int) -> Ranks:
    """Ranks after the first K items of every row are reordered by `scores`.

    A target belongs to the first K when its rank in `first`, where ties count against it, is at
    most K; otherwise it keeps that rank. Among the K, ties count against it too.

    Args:
      name: of the system, for errors.
      first: as from `ranking.full` with lists of at least K and `top` items.
      scores: float[n, K] of `first.top[:, :K]`; what stands at -1 is not read.
      top: how many of the best items to keep of every row.

    Raises:
      UserError: a score is NaN.
    """
    depth = scores.shape[1]
    listed = first.top[:, :depth]
    known = listed >= 0
    check_scores(name, scores[known])
    scores = np.where(known, scores, -np.inf)
    own = np.where(listed == first.targets[:, None], scores, -np.inf).max(axis=1, keepdims=True)
    inside = first.ranks <= depth
    order = np.argsort(-scores, axis=1, kind="stable")
    return Ranks(
        first.users,
        first.targets,
        np.where(inside, (known & (scores >= own)).sum(axis=1), first.ranks),
        first.candidates,
        np.where(inside, (known & (scores == own)).sum(axis=1) - 1, first.ties),
        np.concatenate([np.take_along_axis(listed, order, axis=1), first.top[:, depth:]], axis=1)[
            :, :top
        ],
    )


def scores_of(
    system: System, histories: Histories, rows: np.ndarray, items: np.ndarray, *, chunk: int = 128
) -> np.ndarray:
    """What `system` gives these items of every row: float32[n, K].

    rows: int32[n, 2] (user, position). items: int32[n, K], -1 where there is none; what stands
    there in the result has no meaning.
    """
    longest, chunk = max(int(rows[:, 1].max(initial=1)), 1), min(chunk, max(len(rows), 1))
    found = np.zeros(items.shape, np.float32)
    for start in range(0, len(rows), chunk):
        at = np.arange(start, start + chunk).clip(max=len(rows) - 1)  # the last fills up
        past = sequences.before(histories, rows[at], longest)
        times = sequences.times_before(histories, rows[at], longest)
        found[at] = arrays.fetch(_gathered(jnp.asarray(system.scores(past, times)), items[at]))
    return found


def fit_fusion(margins: np.ndarray, scores: np.ndarray, first: Ranks) -> np.ndarray:
    """Weights (of the margin, of the score) float64[2] by conditional logit on reranked lists.

    A small penalty pulls them to (1, 0), the margin alone; lists without their target say nothing.

    Args:
      margins, scores: float[n, K] of `first.top[:, :K]`.
    """
    depth = margins.shape[1]
    use = first.ranks <= depth
    listed = first.top[use, :depth]
    present = listed >= 0
    features = np.stack([margins[use], scores[use]], axis=-1)
    return conditional_logit.fit(
        np.where(present[..., None], features, 0.0),
        np.argmax(listed == first.targets[use, None], axis=1),
        present=present,
        prior=np.array([1.0, 0.0]),
    )


@jax.jit
def _gathered(scores: jax.Array, items: jax.Array) -> jax.Array:
    return jnp.take_along_axis(scores, jnp.maximum(items, 0), axis=1)
