"""Catalogs whose items show other images than their own."""

import pickle

import numpy as np
import pytest
import toy_items

from mmsrec_jax.data.records import Catalog
from mmsrec_jax.data.shown_images import other_items, with_images

CATALOG = Catalog.from_items([item for item in toy_items.items() if item.id != "i5"])  # corrupt
WITHOUT = toy_items.NO_IMAGE


@pytest.mark.parametrize("count", [2, 3, 40])
def test_a_shuffle_is_a_permutation_without_fixed_points(count):
    has_image = np.random.default_rng(count).random(2 * count) < 0.5
    has_image[:2] = True
    of_item = other_items(has_image, 0)
    assert sorted(of_item) == list(range(2 * count))
    assert ((of_item == np.arange(2 * count)) == ~has_image).all()
    assert np.array_equal(of_item, other_items(has_image, 0))
    if count == 40:
        assert not np.array_equal(of_item, other_items(has_image, 1))


def test_the_only_image_stays_where_it_is():
    assert other_items(np.array([False, True, False]), 0).tolist() == [0, 1, 2]


def test_shuffled_items_show_the_image_of_another_and_keep_all_else():
    shown = pickle.loads(pickle.dumps(with_images(CATALOG, "shuffled", 0)))
    images = {item.image for item in CATALOG}
    assert {item.image for item in shown} == images and len(images) == len(CATALOG)
    for own, other in zip(CATALOG, shown, strict=True):
        assert (own.id, own.text, own.attributes) == (other.id, other.text, other.attributes)
        assert (own.image == other.image) == (own.image is None)
    assert with_images(CATALOG, "own", 0) is CATALOG


def test_blank_images_have_the_size_of_the_own_and_one_color():
    shown = with_images(CATALOG, "blank", 0)
    assert shown[WITHOUT].image is None and not shown.has_image[WITHOUT]
    colors = set()
    for i in np.flatnonzero(CATALOG.has_image):
        assert shown.image(i).shape == CATALOG.image(i).shape
        colors |= {tuple(color) for color in shown.image(i).reshape(-1, 3)}
    assert len(colors) == 1
