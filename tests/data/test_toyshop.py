"""The generated shop: reproducible, and its two exact rows agree with a dense hidden Markov model."""

import functools
import io

import numpy as np
import pytest
from PIL import Image

from mmsrec_jax.data import toyshop
from mmsrec_jax.data.toyshop_truth import Observer, Truth, attainable_scores, oracle_scores

SMALL = dict(
    users=300, items=24, group_size=8, history=(6, 9), drift=0.15, image_weight=1.9,
    text_weight=1.6, group_weight=2.0, popularity_sd=0.4, seed=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def shop():
    return toyshop.generate(**SMALL)


def test_same_seed_same_shop_other_seed_another(shop):
    items, histories, world = toyshop.generate(**SMALL)
    assert items == shop[0]
    np.testing.assert_array_equal(histories.items, shop[1].items)
    np.testing.assert_array_equal(world.tastes, shop[2].tastes)
    assert (toyshop.generate(**{**SMALL, "seed": 4})[1].items[:50] != histories.items[:50]).any()


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
        own = np.array(toyshop.COLOURS[item.attributes["colour"]])
        distances = [np.abs(pixels - np.array(c)).sum(1).min() for c in toyshop.COLOURS.values()]
        assert np.abs(pixels - own).sum(1).min() == min(distances) == 0


def dense_posterior(world, history):
    """P(next | history) from the textbook forward algorithm with dense matrices."""
    groups = world.groups.max() + 1
    sizes = (*world.sizes, groups)
    stay = [(1 - world.drift) * np.eye(n) + world.drift / n for n in sizes]
    transition = functools.reduce(np.kron, stay)
    states = np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), 1)
    columns = [world.attributes[n] for n in world.factors] + [world.groups]
    names = [*world.factors, "group"]
    utility = world.popularity + sum(
        world.weights[n] * (states[:, k, None] == columns[k]) for k, n in enumerate(names)
    )
    belief = np.full(len(states), 1 / len(states))
    free = np.ones(len(world.groups), bool)
    for item in [*history, None]:
        belief = belief @ transition
        choice = np.exp(utility) * free
        choice /= choice.sum(1, keepdims=True)
        if item is None:
            return belief @ choice
        belief = belief * choice[:, item]
        belief /= belief.sum()
        free[item] = False


def test_attainable_equals_the_dense_forward_algorithm(shop):
    _, histories, world = shop
    truth = Truth(world)
    for user in (0, 1):
        history = histories.of(user)[:3]
        expected = dense_posterior(world, history)
        unseen = np.setdiff1d(np.arange(24), history)
        got = truth.attainable(history)
        np.testing.assert_allclose(got[unseen], expected[unseen], rtol=2e-4)
        assert got[unseen].sum() == pytest.approx(1.0, abs=1e-3)


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
    full = score(attainable_scores(world, histories, rows))
    uniform = score(np.ones((300, 24), np.float32))
    assert oracle > full > uniform
    for lost in ("images", "texts", "groups", "order"):
        assert score(attainable_scores(world, histories, rows, Observer(**{lost: False}))) < full


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
