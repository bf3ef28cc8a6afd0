"""Both content models: packing, causality, files, and that features teach what ids cannot."""

import jax
import numpy as np
import pytest
from content import FEATURES, packed, weights

from mmsrec_jax.data import item_features, splits
from mmsrec_jax.data.records import Catalog, Histories, Item
from mmsrec_jax.evaluation import metrics, ranking
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.sequential import registry, train
from mmsrec_jax.sequential.hm4sr import HM4SRSettings
from mmsrec_jax.sequential.molar import MolarSettings
from mmsrec_jax.sequential.recommender import SequentialRecommender, merge

MODELS = {"molar": ("item",), "hm4sr": ("text", "image", "categories")}


@pytest.mark.parametrize("kind", MODELS)
def test_packed_sequences_do_not_see_each_other_nor_the_future(kind):
    config, params, frozen = weights(kind, MODELS[kind])
    encode = jax.jit(lambda rows: merge(config, params, frozen)(rows)[0])
    first, second = [3, 1, 4], [1, 5, 9, 2]
    times = [[10**9, 10**9 + 60, 10**9 + 10**6], [5 * 10**8 + 7**i for i in range(4)]]
    both = encode(packed(first, second, times=times))
    np.testing.assert_allclose(both[:3], encode(packed(first, times=times[:1]))[:3], atol=1e-5)
    np.testing.assert_allclose(both[3:7], encode(packed(second, times=times[1:]))[:4], atol=1e-5)
    changed = encode(packed(first, [1, 5, 7, 8], times=times))
    np.testing.assert_array_equal(changed[:5], both[:5])
    assert np.abs(changed[5:7] - both[5:7]).max(1).min() > 1e-3


@pytest.mark.parametrize("kind", MODELS)
def test_saved_model_scores_the_same(kind, tmp_path):
    recommender = SequentialRecommender(*weights(kind, MODELS[kind]))
    recommender.save(tmp_path)
    back = SequentialRecommender.load(tmp_path)
    assert back.config == recommender.config and back.name == kind
    past = np.array([[3, 1, 4, -1], [1, 5, 9, 2]])
    times = 1e9 + 1e5 * np.arange(8).reshape(2, 4)
    np.testing.assert_array_equal(back.scores(past, times), recommender.scores(past, times))


def test_a_content_model_without_content_says_what_it_reads():
    with pytest.raises(UserError, match="molar reads item features: give it one of image, item"):
        registry.configure(MolarSettings(), 20, {})
    with pytest.raises(UserError, match="hm4sr reads item features: give it one of image, text"):
        registry.configure(HM4SRSettings(), 20, {"categories": FEATURES["categories"]})


@pytest.fixture(scope="module")
def clustered():
    """Everybody stays within one of six kinds of items, which the features tell; each item is so
    rare that its id says next to nothing."""
    rng = np.random.default_rng(0)
    kind_of = np.arange(180) % 6
    picks = [
        rng.choice(np.flatnonzero(kind_of == user % 6), 6, replace=False) for user in range(90)
    ]
    histories = Histories.from_rows(
        np.arange(90).astype(str),
        np.repeat(np.arange(90), 6),
        np.concatenate(picks),
        1.4e9 + 86400 * np.tile(np.arange(6), 90),
    )
    centres = rng.normal(size=(6, 5))
    known = (centres[kind_of] + 0.1 * rng.normal(size=(180, 5))).astype(np.float32)
    return histories, known, rng.permutation(known)


@pytest.mark.parametrize("kind", MODELS)
def test_learns_what_only_the_features_tell(kind, clustered, tmp_path):
    histories, known, shuffled = clustered
    split = splits.leave_one_out(histories)
    settings = registry.MODELS[kind].settings(
        length=6, dim=16, layers=1, heads=2, mlp_dim=32, dropout=0.0, loss="softmax",
        loss_chunk=256, learning_rate=1e-2, warmup_steps=5, weight_decay=0.0, batch_size=16,
        steps=60, evaluate_every=60, patience=9, log_every=20,
    )  # fmt: skip
    hits = []
    for name, rows in (("known", known), ("shuffled", shuffled)):
        given = {part: rows for part in MODELS[kind] if part != "categories"}
        recommender = train.train(
            settings, histories, split,
            num_items=180, directory=tmp_path / name, features=given,
        )  # fmt: skip
        for part in given:  # never trained
            np.testing.assert_array_equal(recommender.features["features"][part][...], rows)
        hits.append(metrics.hit_rate(ranking.full(recommender, histories, split.test).ranks, 30))
    assert hits[0] > 0.8 > 0.5 > hits[1]  # the items of a kind are 30, chance is 30 of 180


def test_standardized_columns_and_items_without_the_feature():
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(50, 4)) * [1, 100, 1e-3, 0] + [5, -2, 0, 7]).astype(np.float32)
    rows[[3, 8]] = 0
    found = item_features.standardized(rows)
    assert found.dtype == np.float32 and not found[[3, 8]].any()
    known = np.delete(found, [3, 8], 0)
    np.testing.assert_allclose(known.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(known.std(0), [1, 1, 1, 0], atol=1e-4)
    np.testing.assert_array_equal(item_features.standardized(rows[[3]]), rows[[3]])


def test_categories_come_from_the_catalog():
    names = ["Drama War", "", None, " War ", "Comedy"]
    catalog = Catalog.from_items([Item(id=str(i), category=name) for i, name in enumerate(names)])
    labels = [[0, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]]
    np.testing.assert_array_equal(item_features.categories(catalog, " "), labels)
    whole = [[0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]]
    np.testing.assert_array_equal(item_features.categories(catalog, None), whole)
    bare = Catalog.from_items([Item(id="0")])
    assert item_features.categories(bare, None).shape == (1, 0)
