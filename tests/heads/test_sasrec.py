"""The encoder and its loss: dense optax, causality, packing, padding, files, shards."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mmsrec_jax.errors import UserError
from mmsrec_jax.models.heads.head import Head, graphdef, init_params
from mmsrec_jax.models.heads.sasrec import SASRecConfig, token_nll
from mmsrec_jax.models.heads.sequences import right_padded
from mmsrec_jax.sharding import make_mesh

CONFIG = SASRecConfig(num_items=50, length=12, dim=16, layers=2, heads=2, mlp_dim=32, dropout=0.3)


@pytest.fixture(scope="module")
def params():
    drawn = init_params(CONFIG, 0)
    noise = np.random.default_rng(0)  # norms and biases away from their identity
    return jax.tree.map(lambda x: x + 0.1 * noise.normal(size=x.shape).astype(np.float32), drawn)


@pytest.fixture(scope="module")
def encode(params):
    return jax.jit(lambda *inputs: nnx.merge(graphdef(CONFIG), params)(*inputs))


@pytest.fixture(scope="module")
def head(params):
    return Head(CONFIG, params)


def alone(items):
    n = len(items)
    ids, segments, positions = np.zeros((3, 1, 12), np.int32)
    ids[0, :n], segments[0, :n], positions[0, :n] = np.asarray(items) + 1, 1, np.arange(n)
    return ids, segments, positions


def test_chunked_loss_and_gradients_equal_dense_optax():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(37, 8)).astype(np.float32)
    table = rng.normal(size=(50, 8)).astype(np.float32)
    targets = rng.integers(0, 50, 37).astype(np.int32)
    targets[[3, 20]] = -1
    weights = rng.normal(size=37).astype(np.float32)

    def chunked(hidden, table):
        nll = token_nll(hidden, table, targets, chunk=10)
        return (nll * weights).sum(), nll

    def dense(hidden, table):
        nll = optax.softmax_cross_entropy_with_integer_labels(
            hidden @ table.T, jnp.maximum(targets, 0)
        )
        nll = jnp.where(targets >= 0, nll, 0)
        return (nll * weights).sum(), nll

    got, wanted = (
        jax.value_and_grad(f, argnums=(0, 1), has_aux=True)(hidden, table) for f in (chunked, dense)
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_logits_of_all_tokens_never_exist_at_once():
    def loss(hidden, table):
        return token_nll(hidden, table, jnp.zeros(4096, jnp.int32), chunk=64).sum()

    shapes = (
        jax.ShapeDtypeStruct((4096, 8), jnp.float32),
        jax.ShapeDtypeStruct((5000, 8), jnp.float32),
    )
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4096 * 5000 * 4 / 10


def test_the_future_does_not_change_earlier_embeddings(encode):
    items = np.arange(10)
    before = encode(*alone(items))[0]
    for at in (3, 7, 9):
        changed = items.copy()
        changed[at:] = 40
        after = encode(*alone(changed))[0]
        np.testing.assert_array_equal(before[:at], after[:at])
        assert np.abs(before[at] - after[at]).max() > 0.01
    past = items.copy()
    past[0] = 40
    assert np.abs(before[9] - encode(*alone(past))[0, 9]).max() > 1e-3  # and the past does matter


def test_packed_sequences_do_not_see_each_other(encode):
    first, second = [4, 8, 15, 16], [23, 42, 4, 8, 15]
    ids, segments, positions = alone(first + second)
    segments[0, :9] = [1] * 4 + [2] * 5
    positions[0, :9] = [*range(4), *range(5)]
    packed = encode(ids, segments, positions)[0]
    np.testing.assert_allclose(packed[:4], encode(*alone(first))[0, :4], atol=1e-5)
    np.testing.assert_allclose(packed[4:9], encode(*alone(second))[0, :5], atol=1e-5)


def test_dropout_only_with_a_key(params, encode):
    keyed = [encode(*alone([1, 2, 3]), jax.random.key(seed))[0, :3] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(keyed[0], keyed[1])
    assert np.abs(keyed[0] - keyed[2]).max() > 0.1
    assert np.abs(keyed[0] - encode(*alone([1, 2, 3]))[0, :3]).max() > 0.1
    model = nnx.merge(graphdef(CONFIG), params)
    dropped, keep = model._dropout_masks(jnp.ones((200, 12, 16)), jax.random.key(0))
    assert abs(float((dropped == 0).mean()) - 0.3) < 0.01
    assert abs(float(dropped.mean()) - 1) < 0.02
    assert keep.shape == (2, 200, 12, 2 * 16 + 2 * 12)
    assert abs(float(keep.mean()) - 0.7) < 0.01
    assert abs(float((keep[0] & keep[1]).mean()) - 0.49) < 0.01  # layers draw independently


def test_padding_and_window_rules(head):
    long = np.random.default_rng(0).integers(0, 50, 20)
    rows = np.full((4, 20), -1)
    rows[0, :3] = rows[1, 17:] = rows[2, [2, 9, 11]] = [7, 1, 30]
    rows[3] = long
    scores = np.asarray(head.scores(rows))
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_array_equal(scores[0], scores[2])
    latest = head.scores(long[None, -12:])
    np.testing.assert_allclose(scores[3], latest[0], atol=1e-5)
    assert scores.shape == (4, 50) and np.isfinite(np.asarray(head.scores(rows[:1] * 0 - 1))).all()


def test_scores_are_embeddings_times_the_item_table(head, params):
    rows = np.random.default_rng(0).integers(0, 50, (700, 5))  # more rows than one chunk
    wanted = head.embed(rows) @ np.asarray(params["items"][...])[1:].T
    np.testing.assert_allclose(head.scores(rows), wanted, atol=1e-5)
    np.testing.assert_allclose(head.embed(rows[650:]), head.embed(rows)[650:], atol=1e-5)


def test_right_padded_keeps_order_and_the_latest():
    rows = np.array([[-1, 3, -1, 5, 6], [1, 2, 3, 4, 5], [-1] * 5, [9, -1, -1, -1, -1]])
    wanted = [[3, 5, 6], [3, 4, 5], [-1, -1, -1], [9, -1, -1]]
    np.testing.assert_array_equal(right_padded(rows, 3), wanted)


def test_saved_head_scores_the_same(head, tmp_path):
    head.save(tmp_path / "head")
    back = Head.load(tmp_path / "head")
    rows = np.arange(30).reshape(5, 6)
    assert back.config == CONFIG
    np.testing.assert_array_equal(back.scores(rows), head.scores(rows))
    with pytest.raises(UserError, match="no saved head"):
        Head.load(tmp_path)


def test_eight_devices_score_as_one(head, params):
    rows = np.random.default_rng(0).integers(0, 50, (5, 6))
    sharded = Head(CONFIG, params, mesh=make_mesh(2, 2, 2))
    assert len(sharded.params["items"][...].sharding.device_set) == 8
    np.testing.assert_allclose(sharded.scores(rows), head.scores(rows), atol=1e-5)
