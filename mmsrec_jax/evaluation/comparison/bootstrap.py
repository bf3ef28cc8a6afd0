"""Paired bootstrap over users: could a difference be due to the choice of test users?

With several seeds of a system, over users and seeds: a resample draws both.
"""

from collections.abc import Sequence

import numpy as np

RESAMPLES, LEVEL = 10_000, 0.95
Bounds = tuple[np.ndarray, np.ndarray]  # low and high
_DRAWS = 1 << 21  # at a time: bounds the memory


def intervals(
    values: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals of the column means of float[n, M]: low and high, float64[M] each.

    A row is a user, a column one difference between two systems. All columns see the same
    resamples, so differences stay paired (Efron & Tibshirani 1993, chapter 13). Intervals are not
    corrected for looking at several. A function of (values, resamples, seed).
    """
    rng = np.random.default_rng(seed)
    return _percentiles(_resampled_means(np.asarray(values, np.float64), rng, resamples), level)


def differences(
    systems: Sequence[np.ndarray],
    base: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals of each system's metrics minus those of system `base`: low and high,
    float64[E, M] each.

    A resample draws users, the same for all, and seeds: systems with as many seeds get the same
    draw, so that seed i of one is paired with seed i of the other. Few seeds are few draws: the
    share of the interval that is theirs is rough, and with S of them too small by about
    sqrt((S - 1) / S) (*ours*). With one seed each these are `intervals` of the differences.

    systems: float[S, M, n] of each, the metrics of every user under every seed; S may differ.
    """
    averaged = _averaged(systems, np.random.default_rng(seed), resamples)
    return _bounds([own - averaged[base] for own in averaged], level)


def means_and_differences(
    systems: Sequence[np.ndarray],
    base: int | None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[Bounds, Bounds | None]:
    """Intervals of each system's metrics themselves, and those of `differences`, None without a
    base; both out of the same draws, those of `differences`, whose arguments these are."""
    averaged = _averaged(systems, np.random.default_rng(seed), resamples)
    means = _bounds(averaged, level)
    if base is None:
        return means, None
    return means, _bounds([own - averaged[base] for own in averaged], level)


def _averaged(
    systems: Sequence[np.ndarray], rng: np.random.Generator, resamples: int
) -> list[np.ndarray]:
    """float64[resamples, M] of each: its metrics averaged over the users and seeds of a draw."""
    users = systems[0].shape[-1]
    columns = np.concatenate([of_system.reshape(-1, users) for of_system in systems])
    means = _resampled_means(columns.T.astype(np.float64), rng, resamples)
    drawn: dict[int, np.ndarray] = {}
    averaged, at = [], 0
    for count, metrics, _ in (of_system.shape for of_system in systems):
        own = means[:, at : at + count * metrics].reshape(resamples, count, metrics)
        at += count * metrics
        if count not in drawn:
            counts = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
            drawn[count] = counts / count
        averaged.append(np.einsum("rsm,rs->rm", own, drawn[count]))
    return averaged


def _resampled_means(values: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """float64[resamples, M]: the column means of float64[n, M] over resampled rows."""
    rows = len(values)
    means = np.empty((resamples, values.shape[1]))
    step = max(_DRAWS // rows, 1)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = rng.integers(0, rows, (count, rows)) + rows * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows)
        means[start : start + count] = weights.astype(np.float64) @ values / rows
    return means


def _bounds(averaged: Sequence[np.ndarray], level: float) -> Bounds:
    """float64[E, M] each, of float64[resamples, M] of each system."""
    low, high = zip(*(_percentiles(own, level) for own in averaged), strict=True)
    return np.stack(low), np.stack(high)


def _percentiles(means: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
