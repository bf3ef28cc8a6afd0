"""The encoder and its loss: dense optax, causality, packing, padding, files, shards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmsrec_jax.data.sequences import right_padded
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.sharding import make_mesh
from mmsrec_jax.sequential.base import Rows
from mmsrec_jax.sequential.recommender import (
    SequentialRecommender,
    init_params,
    merge,
    place_features,
)
from mmsrec_jax.sequential.sasrec import SASRecConfig

CONFIG = SASRecConfig(num_items=50, length=12, dim=16, layers=2, heads=2, mlp_dim=32, dropout=0.3)


@pytest.fixture(scope="module")
def params():
    drawn = init_params(CONFIG, 0)
    noise = np.random.default_rng(0)  # norms and biases away from their identity
    return jax.tree.map(lambda x: x + 0.1 * noise.normal(size=x.shape).astype(np.float32), drawn)


@pytest.fixture(scope="module")
def encode(params):
    return jax.jit(lambda rows, key=None: module(params)(rows, key))


@pytest.fixture(scope="module")
def recommender(params):
    return SequentialRecommender(CONFIG, params)


def module(params):
    return merge(CONFIG, params, place_features(CONFIG, {}))


def alone(items):
    n = len(items)
    ids, segments, positions, times = np.zeros((4, 1, 12), np.int32)
    ids[0, :n], segments[0, :n], positions[0, :n] = np.asarray(items) + 1, 1, np.arange(n)
    return Rows(ids, segments, positions, times, np.full_like(ids, -1))


def test_the_future_does_not_change_earlier_embeddings(encode):
    items = np.arange(10)
    before = encode(alone(items))[0]
    for at in (3, 7, 9):
        changed = items.copy()
        changed[at:] = 40
        after = encode(alone(changed))[0]
        np.testing.assert_array_equal(before[:at], after[:at])
        assert np.abs(before[at] - after[at]).max() > 0.01
    past = items.copy()
    past[0] = 40
    assert np.abs(before[9] - encode(alone(past))[0, 9]).max() > 1e-3  # and the past does matter


def test_packed_sequences_do_not_see_each_other(encode):
    first, second = [4, 8, 15, 16], [23, 42, 4, 8, 15]
    rows = alone(first + second)
    rows.segments[0, :9] = [1] * 4 + [2] * 5
    rows.positions[0, :9] = [*range(4), *range(5)]
    packed = encode(rows)[0]
    np.testing.assert_allclose(packed[:4], encode(alone(first))[0, :4], atol=1e-5)
    np.testing.assert_allclose(packed[4:9], encode(alone(second))[0, :5], atol=1e-5)


def test_dropout_only_with_a_key(params, encode):
    keyed = [encode(alone([1, 2, 3]), jax.random.key(seed))[0, :3] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(keyed[0], keyed[1])
    assert np.abs(keyed[0] - keyed[2]).max() > 0.1
    assert np.abs(keyed[0] - encode(alone([1, 2, 3]))[0, :3]).max() > 0.1
    dropped, keep = module(params).encoder._dropout_masks(
        jnp.ones((200, 12, 16)), jax.random.key(0)
    )
    assert abs(float((dropped == 0).mean()) - 0.3) < 0.01
    assert abs(float(dropped.mean()) - 1) < 0.02
    assert keep.shape == (2, 200, 12, 2 * 16 + 2 * 12)
    assert abs(float(keep.mean()) - 0.7) < 0.01
    assert abs(float((keep[0] & keep[1]).mean()) - 0.49) < 0.01  # layers draw independently


def test_padding_and_window_rules(recommender):
    long = np.random.default_rng(0).integers(0, 50, 20)
    rows = np.full((4, 20), -1)
    rows[0, :3] = rows[1, 17:] = rows[2, [2, 9, 11]] = [7, 1, 30]
    rows[3] = long
    scores = np.asarray(recommender.scores(rows))
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_array_equal(scores[0], scores[2])
    short = recommender.scores(rows[:3])  # read in rows of 8, and in rows of 12 beside the long one
    np.testing.assert_allclose(short, scores[:3], atol=1e-5)
    latest = recommender.scores(long[None, -12:])
    np.testing.assert_allclose(scores[3], latest[0], atol=1e-5)
    assert (
        scores.shape == (4, 50)
        and np.isfinite(np.asarray(recommender.scores(rows[:1] * 0 - 1))).all()
    )


def test_scores_are_embeddings_times_the_item_table(recommender, params):
    rows = np.random.default_rng(0).integers(0, 50, (700, 5))  # more rows than one chunk
    wanted = recommender.embed(rows) @ np.asarray(params["items"][...])[1:].T
    np.testing.assert_allclose(recommender.scores(rows), wanted, atol=1e-5)
    np.testing.assert_allclose(
        recommender.embed(rows[650:]), recommender.embed(rows)[650:], atol=1e-5
    )


def test_right_padded_keeps_order_and_the_latest():
    rows = np.array([[-1, 3, -1, 5, 6], [1, 2, 3, 4, 5], [-1] * 5, [9, -1, -1, -1, -1]])
    wanted = [[3, 5, 6], [3, 4, 5], [-1, -1, -1], [9, -1, -1]]
    np.testing.assert_array_equal(right_padded(rows, 3)[0], wanted)
    times = np.where(rows < 0, np.nan, 1.4e9 + rows)  # too fine for float32
    moved, clock = right_padded(rows, 3, times)
    np.testing.assert_array_equal(clock, np.where(moved < 0, -1, 1.4e9 + moved))


def test_saved_model_scores_the_same(recommender, tmp_path):
    recommender.save(tmp_path / "model")
    back = SequentialRecommender.load(tmp_path / "model")
    rows = np.arange(30).reshape(5, 6)
    assert back.config == CONFIG
    np.testing.assert_array_equal(back.scores(rows), recommender.scores(rows))
    with pytest.raises(UserError, match="no saved model"):
        SequentialRecommender.load(tmp_path)


def test_eight_devices_score_as_one(recommender, params):
    rows = np.random.default_rng(0).integers(0, 50, (5, 6))
    sharded = SequentialRecommender(CONFIG, params, mesh=make_mesh(2, 2, 2))
    assert len(sharded.params["items"][...].sharding.device_set) == 8
    np.testing.assert_allclose(sharded.scores(rows), recommender.scores(rows), atol=1e-5)
