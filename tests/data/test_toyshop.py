"""The generated shop: reproducible, and its exact rows agree with how the choices come out."""

import dataclasses
import functools
import io

import numpy as np
import pytest
from PIL import Image

from mmsrec_jax.data import toyshop
from mmsrec_jax.data.toyshop_truth import Observer, Truth, bayes_optimal_scores, oracle_scores

SMALL = toyshop.ToyshopSettings(
    num_users=300, num_items=24, num_groups=3, history=(6, 9), pull=0.4, drift=0.1,
    image_weight=1.9, text_weight=1.6, popularity_sd=0.4, seed=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def shop():
    return toyshop.generate(SMALL)


def test_same_seed_same_shop_other_seed_another(shop):
    items, histories, world = toyshop.generate(SMALL)
    assert items == shop[0]
    np.testing.assert_array_equal(histories.items, shop[1].items)
    np.testing.assert_array_equal(world.tastes, shop[2].tastes)
    _, other, _ = toyshop.generate(dataclasses.replace(SMALL, seed=4))
    assert (other.items[:50] != histories.items[:50]).any()


def test_histories_have_no_repeats_and_time_goes_on(shop):
    _, histories, _ = shop
    for user in range(len(histories.users)):
        chosen, times = histories.of(user), histories.times(user)
        assert 6 <= len(chosen) <= 9 and len(set(chosen)) == len(chosen)
        assert (np.diff(times) > 0).all()


def test_text_tells_nothing_of_image_attributes_and_the_picture_shows_them(shop):
    items, _, _ = shop
    hidden = {v for name in toyshop.IMAGE_ATTRIBUTES for v in toyshop.VALUES[name]}
    for item in items:
        words = set(" ".join(item.text.values()).lower().replace(".", " ").split())
        assert not words & hidden
        assert item.attributes["material"] in words
        pixels = np.asarray(Image.open(io.BytesIO(item.image)).convert("RGB")).reshape(-1, 3)
        own = np.array(toyshop.COLORS[item.attributes["colour"]])
        distances = [np.abs(pixels - np.array(c)).sum(1).min() for c in toyshop.COLORS.values()]
        assert np.abs(pixels - own).sum(1).min() == min(distances) == 0


def test_bayes_optimal_is_how_often_users_with_that_history_choose(monkeypatch):
    monkeypatch.setattr(toyshop, "_item", lambda *_: None)
    crowd = dataclasses.replace(SMALL, num_users=400_000, history=(3, 3))
    _, histories, world = toyshop.generate(crowd)
    chosen = histories.items.reshape(-1, 3)
    pairs, counts = np.unique(chosen[:, 0] * 24 + chosen[:, 1], return_counts=True)
    first, second = divmod(int(pairs[counts.argmax()]), 24)
    followers = chosen[(chosen[:, 0] == first) & (chosen[:, 1] == second), 2]
    observed = np.bincount(followers, minlength=24)
    expected = Truth(world).bayes_optimal(np.array([first, second])) * len(followers)
    assert len(followers) > 2000 and expected.sum() == pytest.approx(len(followers), rel=1e-6)
    free = expected > 0
    assert free.sum() == 22 and observed[~free].sum() == 0
    chi_square = ((observed - expected)[free] ** 2 / expected[free]).sum()
    assert chi_square < 50  # 21 degrees of freedom: 99.96 % of draws


def log_likelihood(scores, rows, histories):
    total = []
    for row, (user, position) in enumerate(rows):
        p = scores[row].astype(np.float64).copy()
        p[histories.of(user)[:position]] = 0.0
        total.append(np.log(p[histories.of(user)[position]] / p.sum()))
    return float(np.mean(total))


def test_every_signal_matters_and_no_observer_beats_the_oracle(shop):
    _, histories, world = shop
    rows = np.array([(u, len(histories.of(u)) - 1) for u in range(300)])
    score = functools.partial(log_likelihood, rows=rows, histories=histories)
    oracle = score(oracle_scores(world, histories, rows))
    full = score(bayes_optimal_scores(world, histories, rows))
    uniform = score(np.ones((300, 24), np.float32))
    assert oracle > full > uniform
    for lost in ("images", "texts", "groups", "order"):
        assert score(bayes_optimal_scores(world, histories, rows, Observer(**{lost: False}))) < full


def test_oracle_probabilities_are_calibrated(shop):
    _, histories, world = shop
    rows = np.array([(u, p) for u in range(300) for p in range(1, len(histories.of(u)))])
    truth = oracle_scores(world, histories, rows)
    chosen = np.array([histories.of(u)[p] for u, p in rows])
    observed = np.bincount(chosen, minlength=24)
    expected = truth.sum(0)
    chi_square = ((observed - expected) ** 2 / (truth * (1 - truth)).sum(0)).sum()
    assert chi_square < 60  # 24 items: mean 24, sd 7


def test_world_round_trip(shop, tmp_path):
    world = shop[2]
    world.save(tmp_path / "world.npz")
    again = toyshop.World.load(tmp_path / "world.npz")
    assert again.weights == world.weights and again.drift == world.drift
    np.testing.assert_array_equal(again.attributes["colour"], world.attributes["colour"])
    np.testing.assert_array_equal(again.tastes, world.tastes)
