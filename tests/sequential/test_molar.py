"""Molar: equation 4 by loops, what its loss is made of, and that content alone decides scores."""

import functools

import jax
import numpy as np
from content import FEATURES, ITEMS, SIZES, module, packed, weights
from test_contrastive import by_loops

from mmsrec_jax.sequential.losses import ItemLoss
from mmsrec_jax.sequential.molar import align
from mmsrec_jax.sequential.recommender import SequentialRecommender

CONTENTS = ("text", "image")
ROWS = packed([3, 1, 4], [1, 5, 9])
run_align = jax.jit(align, static_argnums=4)


@functools.cache
def found():
    """What the model says of two sequences, compiled once."""
    recommender = module("molar", CONTENTS, alignment_weight=0.7, temperature=0.2)

    @jax.jit
    def run(rows, key):
        loss, parts = recommender.loss(rows, key, ItemLoss("softmax"))
        states = {"content": recommender(rows), "id": recommender.ids(rows)}
        tables = {"content": recommender.table(), "id": recommender.ids.table()}
        return loss, parts, states, tables

    return run(ROWS, jax.random.key(0))


def test_table_is_an_adapter_over_the_features():
    _, params, _ = weights("molar", CONTENTS, alignment_weight=0.7, temperature=0.2)
    params = {name: jax.tree.map(np.asarray, dict(params)[name]) for name in dict(params)}
    inner = sum(FEATURES[n] @ params["inner"][n][...] for n in CONTENTS)
    inner = inner + params["inner_bias"][...]
    gelu = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
    wanted = (gelu @ params["outer"][...] + params["outer_bias"][...]) / np.sqrt(SIZES["dim"])
    np.testing.assert_allclose(found()[3]["content"], wanted, rtol=1e-4, atol=1e-5)


def test_alignment_is_equation_4_without_the_users_own_other_times():
    rows = packed([3, 1, 4], [1, 5], [9, 2])
    rng = np.random.default_rng(1)
    content, id_based = rng.normal(size=(2, 1, 8, 6))
    nats = run_align(content, id_based, rows, jax.random.key(0), 99, 0.2)
    user = np.array([1, 1, 1, 2, 2, 3, 3])
    rivals, known = user[:, None] != user, np.ones(7, bool)
    content, id_based = content[0, :7], id_based[0, :7]
    wanted = by_loops(id_based, content, rivals, known, 0.2)
    wanted += by_loops(content, id_based, rivals, known, 0.2)
    np.testing.assert_allclose(nats, wanted, rtol=1e-5)


def test_the_loss_is_both_models_softmax_and_the_alignment():
    loss, parts, states, tables = found()
    for name in ("content", "id"):
        logits = np.asarray(states[name][0, :6] @ tables[name].T, np.float64)
        own = logits[np.arange(6), ROWS.targets[0, :6]]
        nats = np.log(np.exp(logits).sum(1)) - own
        np.testing.assert_allclose(parts[name], nats.mean(), rtol=1e-4)
    wanted = run_align(states["content"], states["id"], ROWS, jax.random.key(9), 99, 0.2)
    np.testing.assert_allclose(parts["alignment"], wanted, rtol=1e-4)
    total = parts["content"] + parts["id"] + 0.7 * parts["alignment"]
    np.testing.assert_allclose(loss, total, rtol=1e-6)


def test_ids_reach_the_scores_through_training_alone():
    config, params, features = weights("molar", CONTENTS, alignment_weight=0.7, temperature=0.2)
    past = np.array([[3, 1, 4], [1, 5, 9]])
    before = SequentialRecommender(config, params, features).scores(past)
    assert before.shape == (2, ITEMS)
    other = jax.tree.map(lambda x: x, params)
    other["ids"] = jax.tree.map(lambda x: x + 1, params["ids"])
    np.testing.assert_array_equal(
        SequentialRecommender(config, other, features).scores(past), before
    )
    swapped = jax.tree.map(lambda x: x[::-1], features)
    assert np.abs(SequentialRecommender(config, params, swapped).scores(past) - before).max() > 0.01
