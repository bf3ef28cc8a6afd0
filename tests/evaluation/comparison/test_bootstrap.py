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


def test_differences_of_one_seed_each_are_intervals_of_the_differences():
    rng = np.random.default_rng(0)
    systems = [rng.random((1, 3, 40)) for _ in range(4)]
    low, high = bootstrap.differences(systems, 2, resamples=300, seed=5)
    for mine, lower, upper in zip(systems, low, high, strict=True):
        wanted = bootstrap.intervals((mine - systems[2])[0].T, resamples=300, seed=5)
        np.testing.assert_allclose((lower, upper), wanted, atol=1e-12)


def test_means_and_differences_are_of_the_same_draws():
    rng = np.random.default_rng(0)
    systems = [rng.random((seeds, 3, 40)) for seeds in (1, 1, 3)]
    means, gaps = bootstrap.means_and_differences(systems, 1, resamples=300, seed=5)
    np.testing.assert_array_equal(gaps, bootstrap.differences(systems, 1, resamples=300, seed=5))
    wanted = bootstrap.intervals(systems[0][0].T, resamples=300, seed=5)
    np.testing.assert_allclose((means[0][0], means[1][0]), wanted, atol=1e-12)
    alone, none = bootstrap.means_and_differences(systems, None, resamples=300, seed=5)
    np.testing.assert_array_equal(alone, means)
    assert none is None


def test_differences_of_several_seeds_draw_users_and_seeds():
    """Without noise between users the interval is that of the seeds, which are paired."""
    of_seed = np.array([0.1, 0.3, 0.8])
    base = np.repeat(of_seed[:, None, None], 30, axis=2)
    gain = np.array([0.01, 0.02, 0.06])[:, None, None]
    alone = np.full((1, 1, 30), 0.2)
    low, high = bootstrap.differences([base + gain, base, alone], 1, resamples=4000)
    np.testing.assert_allclose((low[0], high[0]), [[0.01], [0.06]], atol=1e-12)  # all draws of one
    np.testing.assert_allclose((low[1], high[1]), [[0.0], [0.0]], atol=1e-12)
    np.testing.assert_allclose((low[2], high[2]), [[0.2 - 0.8], [0.2 - 0.1]], atol=1e-12)


def test_seeds_that_differ_widen_the_interval():
    rng = np.random.default_rng(1)
    users = rng.random((1, 1, 200))
    same, other = np.repeat(users, 3, axis=0), np.zeros((3, 1, 200))
    moved = same + np.array([-0.3, 0.0, 0.3])[:, None, None]
    low, high = bootstrap.differences([same, moved, other], 2)
    np.testing.assert_allclose(low[0], bootstrap.intervals(users[0].T)[0], atol=0.01)
    assert high[1] - low[1] > 3 * (high[0] - low[0])
