"""BERT4Rec: its forward pass in numpy, what is masked, both directions, packing, files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmsrec_jax.sequential.base import Rows
from mmsrec_jax.sequential.bert4rec import BERT4RecConfig
from mmsrec_jax.sequential.losses import ItemLoss
from mmsrec_jax.sequential.recommender import (
    SequentialRecommender,
    init_params,
    merge,
    place_features,
)

CONFIG = BERT4RecConfig(
    num_items=20, length=8, dim=8, layers=2, heads=2, mlp_dim=12, dropout=0.3,
    mask_rate=0.3, last_rate=0.25,
)  # fmt: skip
MASK = 21


@pytest.fixture(scope="module")
def params():
    noise = np.random.default_rng(0)  # norms and biases away from their identity, all else larger
    return jax.tree.map(
        lambda x: x + 0.3 * noise.normal(size=x.shape).astype(np.float32), init_params(CONFIG, 0)
    )


@pytest.fixture(scope="module")
def encode(params):
    return jax.jit(lambda rows: module(params)(rows))


@pytest.fixture(scope="module")
def recommender(params):
    return SequentialRecommender(CONFIG, params)


def module(params):
    return merge(CONFIG, params, place_features(CONFIG, {}))


def packed(*sequences, width=8):
    """One row of these sequences of token ids."""
    ids, segments, positions = np.zeros((3, 1, width), np.int32)
    start = 0
    for number, tokens in enumerate(sequences, 1):
        place = slice(start, start + len(tokens))
        ids[0, place], segments[0, place] = tokens, number
        positions[0, place] = np.arange(len(tokens))
        start += len(tokens)
    return Rows(ids, segments, positions, np.zeros_like(ids), np.full_like(ids, -1))


def numpy_states(params, tokens):
    """States of one sequence by itself: float64[n, dim]."""
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), params.to_pure_dict())
    layers = w["encoder"]

    def norm(x, scale_bias):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale_bias[0] + scale_bias[1]

    def gelu(x):
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    n, d, half = len(tokens), CONFIG.dim, CONFIG.dim // CONFIG.heads
    x = w["items"][tokens] + w["positions"][n - 1 - np.arange(n)]
    for layer in range(CONFIG.layers):
        y = norm(x, layers["norms"][layer, 0]) @ layers["qkv"][layer]
        mixed = np.zeros((n, d))
        for at in range(0, d, half):
            q, k, v = (y[:, start + at : start + at + half] for start in (0, d, 2 * d))
            weights = np.exp(q @ k.T / np.sqrt(half))
            mixed[:, at : at + half] = weights / weights.sum(1, keepdims=True) @ v
        x = x + mixed @ layers["out"][layer]
        y = gelu(
            norm(x, layers["norms"][layer, 1]) @ layers["up"][layer] + layers["up_bias"][layer]
        )
        x = x + y @ layers["down"][layer] + layers["down_bias"][layer]
    x = norm(x, layers["final_norm"]) @ w["transform"] + w["transform_bias"]
    return norm(gelu(x), w["transform_norm"])


@pytest.mark.parametrize("count", [0, 3, 7, 8, 11])
def test_scores_are_those_of_a_mask_token_after_the_history(recommender, params, count):
    items = np.random.default_rng(count).integers(0, 20, count)
    history = np.full((1, 12), -1)
    history[0, 1 : 1 + count] = items
    state = numpy_states(params, [*(items[-7:] + 1), MASK])[-1]  # the mask needs one place of 8
    table = np.asarray(params["items"][...], np.float64)[1:21]
    wanted = table @ state + np.asarray(params["item_bias"][...])
    np.testing.assert_allclose(recommender.scores(history)[0], wanted, atol=1e-4)
    np.testing.assert_allclose(recommender.embed(history)[0], state, atol=1e-4)


def test_packed_sequences_are_read_both_ways_and_by_themselves(params, encode):
    first, second = [4, MASK, 15, 16], [3, MASK, 9]
    states = encode(packed(first, second))[0]
    np.testing.assert_allclose(states[:4], numpy_states(params, first), atol=1e-4)
    np.testing.assert_allclose(states[4:7], numpy_states(params, second), atol=1e-4)
    changed = encode(packed([4, MASK, 15, 2], second))[0]
    assert np.abs(changed[1] - states[1]).max() > 0.01  # a later item matters to an earlier place
    np.testing.assert_array_equal(changed[4:7], states[4:7])


def test_what_is_masked(params):
    rows = packed([1] * 4, [2] * 2, [3])
    many = Rows(*(np.repeat(array, 40_000, 0) for array in rows))
    masked = np.asarray(module(params).draw_masks(many, jax.random.key(0)))
    assert not masked[:, 7].any()  # padding
    assert masked[:, :4].any(1).all() and masked[:, 4:6].any(1).all() and masked[:, 6].all()
    for places in (range(4), range(4, 6)):
        n = len(places)
        drawn = 0.3 + 0.7**n / n  # by chance, or as the one of a sequence that chance spared
        np.testing.assert_allclose(masked[:, places[:-1]].mean(0), 0.75 * drawn, atol=0.01)
        np.testing.assert_allclose(masked[:, places[-1]].mean(), 0.25 + 0.75 * drawn, atol=0.01)
    both = (masked[:, 0] & masked[:, 4]).mean()  # sequences of a row are masked independently
    np.testing.assert_allclose(both, masked[:, 0].mean() * masked[:, 4].mean(), atol=0.01)
    again = module(params).draw_masks(many, jax.random.key(1))
    assert 0.2 < (masked != again).mean() < 0.6


def test_the_loss_is_that_of_the_masked_items_and_of_nothing_else(params):
    rows = packed([4, 7, 15, 16], [3, 12, 9])
    rows = Rows(*(np.repeat(array, 6, 0) for array in rows))
    rows.ids[3:, :4] = [5, 6, 8, 10]

    @jax.jit
    def losses(key):
        model = module(params)
        masked = model.draw_masks(rows, jax.random.fold_in(key, 1))
        states = model(rows._replace(ids=jnp.where(masked, MASK, rows.ids)), key)
        nats = -jax.nn.log_softmax(states @ model.table().T + model.bias())
        own = jnp.take_along_axis(nats, jnp.maximum(rows.ids - 1, 0)[..., None], 2)[..., 0]
        return *model.loss(rows, key, ItemLoss("softmax", chunk=5)), own, masked

    (found, parts, own, masked), (other, *_) = map(losses, jax.random.split(jax.random.key(0)))
    np.testing.assert_allclose(found, np.asarray(own)[masked].mean(), rtol=1e-5)
    assert not parts and 6 < masked.sum() < 40
    assert abs(float(other - found)) > 1e-3


def test_saved_model_scores_the_same(recommender, tmp_path):
    recommender.save(tmp_path)
    back, rows = SequentialRecommender.load(tmp_path), np.arange(12).reshape(2, 6)
    assert back.config == CONFIG and not back.causal
    np.testing.assert_array_equal(back.scores(rows), recommender.scores(rows))
