"""The baselines: random against its closed form, counts against loops, nothing but training
data."""

import math

import numpy as np
import pytest

from mmsrec_jax.data import splits
from mmsrec_jax.data.records import Histories
from mmsrec_jax.evaluation import metrics, ranking
from mmsrec_jax.evaluation.baselines import Cooccurrence, Popularity, Random
from mmsrec_jax.evaluation.protocols import sampled


def histories_of(sequences):
    owner = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences])
    times = np.concatenate([np.arange(len(s)) for s in sequences])
    return Histories.from_rows(
        np.arange(len(sequences)).astype(str), owner, np.concatenate(sequences), times
    )


@pytest.fixture(scope="module")
def histories():
    rng = np.random.default_rng(0)
    return histories_of([rng.integers(0, 25, rng.integers(3, 12)) for _ in range(60)])


def test_random_scorer_equals_its_closed_form():
    rng = np.random.default_rng(0)
    users = 6000
    histories = histories_of(list(rng.integers(0, 500, (users, 6))))
    frozen = sampled(histories, splits.leave_one_out(histories).test, n=20, seed=0, num_items=500)
    got = metrics.summary(ranking.full_and_sampled(Random(500, seed=5), histories, [frozen])[1])
    ndcg = sum(1 / math.log2(r + 1) for r in range(1, 6)) / 21
    assert (round(5 / 21, 3), round(ndcg, 3)) == (0.238, 0.140)
    error = 4 / math.sqrt(users)  # four standard errors of a share, at least
    assert abs(got["hr@5"] - 5 / 21) < 0.43 * error
    assert abs(got["ndcg@5"] - ndcg) < 0.29 * error
    assert abs(got["auc"] - 0.5) < 0.31 * error


def test_random_does_not_depend_on_chunks_and_does_on_the_seed():
    histories = np.random.default_rng(0).integers(0, 50, (7, 4))
    scores = Random(50, seed=1).scores(histories)
    padded = np.pad(histories[3:], ((0, 0), (0, 2)), constant_values=-1)
    np.testing.assert_array_equal(scores[3:], Random(50, seed=1).scores(padded))
    assert not np.isclose(scores, Random(50, seed=2).scores(histories)).any(1).all()
    assert len(np.unique(scores)) > 340


def test_popularity_counts_training_interactions(histories):
    split = splits.leave_one_out(histories)
    counts = np.zeros(25)
    for user in range(60):
        for item in histories.of(user)[:-2]:
            counts[item] += 1
    got = Popularity(histories, split, 25).scores(np.zeros((2, 3), int))
    np.testing.assert_array_equal(got, np.stack([counts, counts]))


def test_cooccurrence_equals_a_loop(histories):
    split = splits.leave_one_out(histories)
    weights, counts = np.zeros((25, 25)), np.zeros(25)
    for user in range(60):
        past = histories.of(user)[:-2]
        for i, item in enumerate(past):
            counts[item] += 1
            for distance in (1, 2, 3):
                if i + distance < len(past):
                    weights[item, past[i + distance]] += 1 / distance
    got = Cooccurrence(histories, split, 25, window=3).scores(
        np.array([[4, 9, -1, -1], [1, 2, 3, 9], [-1, -1, -1, 9], [-1] * 4])
    )
    for row in got[:3]:  # sums differ by at least 1/6, popularity moves them by less
        np.testing.assert_allclose(row, weights[9], atol=1 / 12)
        order = np.lexsort((counts, weights[9].round(6)))
        assert (np.diff(row[order]) >= 0).all()
    np.testing.assert_array_equal(np.argsort(got[3]), np.argsort(counts.astype(np.float32)))


def test_baselines_never_see_validation_and_test(histories):
    split = splits.leave_one_out(histories)
    items = histories.items.copy()
    held_out = np.concatenate([histories.offsets[1:] - 1, histories.offsets[1:] - 2])
    items[held_out] = (items[held_out] + 11) % 25
    changed = Histories(histories.users, histories.offsets, items, histories.timestamps)
    past = np.arange(25)[:, None]
    for kind in (Popularity, Cooccurrence):
        before = kind(histories, split, 25).scores(past)
        np.testing.assert_array_equal(before, kind(changed, split, 25).scores(past))
