"""The generated shop: reproducible, and made as its description says."""

import dataclasses
import io
import itertools
import re

import numpy as np
import pytest
from PIL import Image

from mmsrec_jax.data import splits, toyshop, toyshop_items
from mmsrec_jax.data.toyshop import DAY, LOOKS, RATINGS, fitting
from mmsrec_jax.data.toyshop_items import PLACES, TONES, VALUES
from mmsrec_jax.runtime.errors import UserError

SMALL = toyshop.ToyshopSettings(num_users=2000, num_items=200, history=(6, 9), seed=3)


@pytest.fixture(scope="module")
def shop():
    return toyshop.generate(SMALL)


def test_same_seed_same_shop_other_seed_another(shop):
    items, histories, world = toyshop.generate(SMALL)
    assert items == shop[0]
    for name in ("items", "timestamps", "ratings"):
        np.testing.assert_array_equal(getattr(histories, name), getattr(shop[1], name))
    np.testing.assert_array_equal(world.states, shop[2].states)
    _, other, another = toyshop.generate(dataclasses.replace(SMALL, seed=4))
    assert (other.items[:50] != histories.items[:50]).any()
    assert (another.attributes["color"] != world.attributes["color"]).any()


def test_histories_have_no_repeats_and_time_goes_on(shop):
    _, histories, _ = shop
    for user in range(len(histories.users)):
        chosen, times = histories.of(user), histories.times(user)
        assert 6 <= len(chosen) <= 9 and len(set(chosen)) == len(chosen)
        assert (np.diff(times) > 0).all()


def test_sessions_of_hours_and_breaks_of_weeks(shop):
    _, histories, world = shop
    gaps = np.concatenate([np.diff(histories.times(u)) for u in range(len(histories.users))])
    within = gaps < DAY
    assert 0.5 < within.mean() < 0.6 and (gaps[~within] > 14 * DAY).all()
    assert 60 * 10 < np.median(gaps[within]) < 60 * 20 and np.median(gaps[~within]) < 60 * DAY
    assert world.mean_survival == pytest.approx(np.exp(-gaps / DAY / SMALL.mood_days).mean())


def test_new_items_are_chosen_in_the_last_two_weeks_and_are_new_to_training(shop):
    _, histories, world = shop
    new = world.offered > 0
    assert new.sum() == 8
    bought_at = histories.timestamps[new[histories.items]]
    assert len(bought_at) and (bought_at >= world.offered.max()).all()
    split = splits.leave_one_out(histories)
    position = np.arange(len(histories.items)) - histories.offsets[histories.user_of_row]
    in_training = position < split.train_end[histories.user_of_row]
    last = histories.items[histories.offsets[1:] - 1]
    assert 0.5 * new.mean() < new[last].mean() < 2 * new.mean()
    assert new[histories.items[in_training]].mean() < 0.25 * new[last].mean()


def test_no_single_word_tells_the_look(shop):
    _, _, world = shop
    assert world.looks.shape == (TONES.max() + 1, len(VALUES["pattern"]))
    for row in world.looks:
        assert np.bincount(row).tolist() == [2] * LOOKS
    for column in world.looks.T:
        assert len(set(column)) == 2


def test_some_users_want_one_look_everywhere(shop):
    profiles = shop[2].states[shop[1].offsets[:-1]]
    alike = (profiles[:, 0] == profiles[:, 1]).mean()
    assert alike == pytest.approx(0.5 + 0.5 / LOOKS, abs=0.04)


def test_what_fits_depends_on_the_place_of_use():
    office, party = 0, 3
    assert PLACES[office] != PLACES[party]
    state = np.array([2, 1, 5, party, office])  # look 2 away, look 1 at home, wants material 5
    assert fitting(np.array([office, 2, 5]), state).tolist() == [True, True, True]
    assert fitting(np.array([party, 2, 5]), state).tolist() == [False, False, True]
    assert fitting(np.array([party, 1, 0]), state).tolist() == [False, True, False]
    both = fitting(np.array([[office, 2, 5], [party, 1, 0]]), state)
    np.testing.assert_array_equal(both, [[True, True, True], [False, True, False]])


def test_ratings_follow_how_well_the_choice_fits(shop):
    _, histories, world = shop
    _, look, material = fitting(world.kinds[histories.items], world.states).T
    assert set(np.unique(histories.ratings)) == {1, 2, 3, 4, 5}
    for case in itertools.product((False, True), repeat=2):
        likely = RATINGS[int(case[0]), int(case[1])]
        found = histories.ratings[(look == case[0]) & (material == case[1])]
        assert len(found) > 300 and likely.sum() == pytest.approx(1)
        observed = np.bincount(found.astype(int), minlength=6)[1:] / len(found)
        np.testing.assert_allclose(observed, likely, atol=0.06)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def test_texts_tell_what_pictures_do_not_show_in_several_wordings(shop):
    items, _, _ = shop
    hidden = {v for name in toyshop_items.IMAGE_ATTRIBUTES for v in VALUES[name]}
    said: dict[str, set[str]] = {}
    for item in items:
        text = {field: " ".join(words(value)) for field, value in item.text.items()}
        assert not set(" ".join(text.values()).split()) & hidden
        for name, wordings, field in (
            ("material", toyshop_items.MATERIALS, "title"),
            ("material", toyshop_items.MATERIALS, "description"),
            ("product", toyshop_items.PRODUCTS, "title"),
            ("occasion", toyshop_items.OCCASIONS, "description"),
        ):
            own = item.attributes[name]
            used = {word for word in wordings[own] if f" {word} " in f" {text[field]} "}
            assert used, (own, text[field])
            said.setdefault(own, set()).update(used)
            if field == "description":
                of_others = {w for v in wordings if v != own for w in wordings[v]}
                assert not any(f" {word} " in f" {text[field]} " for word in of_others)
        assert len(words(text["description"])) > 2 * len(words(text["title"]))
    assert all(len(wordings) > 1 for wordings in said.values())
    vocabulary = {word for item in items for text in item.text.values() for word in words(text)}
    assert len(vocabulary) < 250


def test_the_picture_shows_the_color(shop):
    items, _, _ = shop
    for item in items:
        pixels = np.asarray(Image.open(io.BytesIO(item.image)).convert("RGB")).reshape(-1, 3)
        own = np.array(toyshop_items.COLORS[item.attributes["color"]])
        distances = [
            np.abs(pixels - np.array(c)).sum(1).min() for c in toyshop_items.COLORS.values()
        ]
        assert len(pixels) == 112 * 112
        assert np.abs(pixels - own).sum(1).min() == min(distances) == 0


def test_most_groups_are_those_of_the_kind_of_product(shop):
    _, _, world = shop
    product = world.attributes["product"]
    most = [np.bincount(world.groups[product == kind]).max() for kind in range(8)]
    assert sum(most) / len(product) == pytest.approx(0.95 + 0.05 / 8, abs=0.05)
    assert set(world.leads_to) == set(range(4))


def test_world_round_trip(shop, tmp_path):
    world = shop[2]
    world.save(tmp_path / "world.npz")
    again = toyshop.World.load(tmp_path / "world.npz")
    assert again.weights == world.weights and again.variety == world.variety
    for name in ("looks", "groups", "leads_to", "popularity", "offered", "states"):
        np.testing.assert_array_equal(getattr(again, name), getattr(world, name))
    np.testing.assert_array_equal(again.kinds, world.kinds)


def test_histories_longer_than_what_is_on_offer_are_refused():
    settings = dataclasses.replace(SMALL, num_items=10, new_items=0.2, history=(6, 9))
    with pytest.raises(UserError, match=r"toyshop.history=\(6, 9\): .* the 8 items that are on"):
        settings.check("toyshop")
