"""GRU4Rec against a loop over items in numpy; packing, dropout, windows, files."""

import jax
import numpy as np
import pytest

from mmsrec_jax.sequential.base import Rows
from mmsrec_jax.sequential.gru4rec import GRU4RecConfig
from mmsrec_jax.sequential.recommender import (
    SequentialRecommender,
    init_params,
    merge,
    place_features,
)

CONFIG = GRU4RecConfig(num_items=20, length=9, dim=6, hidden=10, layers=2, dropout=0.4)


@pytest.fixture(scope="module")
def params():
    noise = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x + 0.5 * noise.normal(size=x.shape).astype(np.float32), init_params(CONFIG, 0)
    )


@pytest.fixture(scope="module")
def encode(params):
    return jax.jit(lambda rows, key=None: module(params)(rows, key))


@pytest.fixture(scope="module")
def recommender(params):
    return SequentialRecommender(CONFIG, params)


def module(params):
    return merge(CONFIG, params, place_features(CONFIG, {}))


def numpy_states(params, items):
    """States of one sequence, item after item: float64[n, dim]."""
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), params.to_pure_dict())
    states = [np.zeros(10), np.zeros(10)]
    found = []
    for item in items:
        x = w["items"][item + 1] * np.sqrt(6)
        for layer, h in enumerate(states):
            gru = w["layers"][layer]
            of_x, of_h = x @ gru["input"] + gru["bias"], h @ gru["state"]
            reset, update = (1 / (1 + np.exp(-(of_x + of_h)[a : a + 10])) for a in (0, 10))
            candidate = np.tanh(of_x[20:] + reset * (of_h[20:] + gru["state_bias"]))
            x = states[layer] = (1 - update) * candidate + update * h
        found.append(x @ w["out"] + w["out_bias"])
    return np.stack(found)


def row(*sequences):
    ids, segments, positions = np.zeros((3, 1, 9), np.int32)
    start = 0
    for number, items in enumerate(sequences, 1):
        place = slice(start, start + len(items))
        ids[0, place], segments[0, place] = np.asarray(items) + 1, number
        positions[0, place] = np.arange(len(items))
        start += len(items)
    return Rows(ids, segments, positions, np.zeros_like(ids), np.full_like(ids, -1))


def test_the_state_begins_anew_with_every_packed_sequence(params, encode):
    first, second, third = [4, 8, 15], [16, 4], [8, 8, 3]
    states = encode(row(first, second, third))[0]
    wanted = [numpy_states(params, items) for items in (first, second, third)]
    np.testing.assert_allclose(states[:8], np.concatenate(wanted), atol=1e-5)


@pytest.mark.parametrize("count", [1, 5, 9, 13])
def test_scores_follow_the_latest_items(recommender, params, count):
    items = np.random.default_rng(count).integers(0, 20, count)
    history = np.full((1, 14), -1)
    history[0, :count] = items
    state = numpy_states(params, items[-9:])[-1]
    table = np.asarray(params["items"][...], np.float64)[1:]
    np.testing.assert_allclose(recommender.scores(history)[0], table @ state, atol=1e-4)


def test_dropout_only_with_a_key(encode):
    keyed = [encode(row([1, 2, 3]), jax.random.key(seed))[0, :3] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(keyed[0], keyed[1])
    assert np.abs(keyed[0] - keyed[2]).max() > 0.1
    assert np.abs(keyed[0] - encode(row([1, 2, 3]))[0, :3]).max() > 0.1


def test_saved_model_scores_the_same(recommender, tmp_path):
    recommender.save(tmp_path)
    back, rows = SequentialRecommender.load(tmp_path), np.arange(12).reshape(2, 6)
    assert back.config == CONFIG and back.causal
    np.testing.assert_array_equal(back.scores(rows), recommender.scores(rows))
