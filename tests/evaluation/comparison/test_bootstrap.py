"""Bootstrap intervals against a loop, the normal approximation, and what pairing is for."""

import numpy as np

from mmsrec_jax.evaluation.comparison import bootstrap


def test_intervals_equal_a_loop_over_resamples():
    values = np.random.default_rng(0).normal(size=(40, 3))
    drawn = np.random.default_rng(7).integers(0, 40, (500, 40))
    means = np.stack([values[rows].mean(0) for rows in drawn])
    low, high = bootstrap.intervals(values, resamples=500, seed=7)
    np.testing.assert_allclose(low, np.quantile(means, 0.025, axis=0), atol=1e-12)
    np.testing.assert_allclose(high, np.quantile(means, 0.975, axis=0), atol=1e-12)


def test_intervals_near_the_normal_ones_and_repeatable():
    values = np.random.default_rng(1).normal(0.3, 2.0, (4000, 1))
    low, high = bootstrap.intervals(values, resamples=3000)  # in several chunks
    error = 1.96 * values.std() / np.sqrt(4000)
    np.testing.assert_allclose([low[0], high[0]], values.mean() + [-error, error], atol=0.006)
    again = bootstrap.intervals(values, resamples=3000)
    np.testing.assert_array_equal([low, high], again)
    assert (bootstrap.intervals(values, resamples=3000, seed=1)[0] != low).all()


def test_columns_share_resamples():
    values = np.random.default_rng(2).normal(size=(50, 1))
    low, high = bootstrap.intervals(np.hstack([values, -values]), resamples=200)
    np.testing.assert_allclose(low, -high[::-1], atol=1e-12)
