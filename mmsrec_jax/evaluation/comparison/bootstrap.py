"""Paired bootstrap over users: could a difference be due to the choice of test users?"""

import numpy as np

RESAMPLES, LEVEL = 10_000, 0.95
_DRAWS = 1 << 21  # at a time: bounds the memory


def intervals(
    values: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals of the column means of float[n, M]: low and high, float64[M] each.

    A row is a user, a column one difference between two systems. All columns see the same
    resamples, so differences stay paired (Efron & Tibshirani 1993, chapter 13). Intervals are not
    corrected for looking at several. A function of (values, resamples, seed).
    """
    values = np.asarray(values, np.float64)
    rows, rng = len(values), np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    step = max(_DRAWS // rows, 1)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = rng.integers(0, rows, (count, rows)) + rows * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows)
        means[start : start + count] = weights.astype(np.float64) @ values / rows
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
