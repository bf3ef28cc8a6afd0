"""The model's input as a pytree, and errors that name its fields."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import mllm_batches as mb
import numpy as np
import pytest

from mmsrec_jax.models.batch import Batch, concatenate, fields_of, pack_images, text_rows
from mmsrec_jax.models.batch_tree import check_shapes


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    rows = [mb.example(rng, [(4, 6), (2, 2)], 5, suffixes=(2, 3)), mb.example(rng, [(8, 4)], 4)]
    made = mb.batch(rows, 30, 40)
    return dataclasses.replace(
        made, answer_positions=np.zeros((2, 7), np.int32), labels=np.zeros((2, 7), np.int32)
    )


def test_what_is_none_is_no_part_of_the_tree(batch):
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(batch)]
    assert [name.removeprefix(".") for name in names] == [name for name, _, _ in fields_of(batch)]
    assert ".index" not in names and ".images.window_ids" in names
    doubled = jax.jit(lambda b: jax.tree.map(lambda x: x + x, b))(batch)
    assert isinstance(doubled, Batch)
    chex.assert_trees_all_equal(doubled.images.hw, 2 * batch.images.hw)


def wrong(batch, name, value):
    if name.startswith("images."):
        images = dataclasses.replace(batch.images, **{name.removeprefix("images."): value})
        return dataclasses.replace(batch, images=images)
    return dataclasses.replace(batch, **{name: value})


@pytest.mark.parametrize(
    "name, value, spec",
    [
        ("positions", np.zeros((2, 30), np.int32), "int32[B, 3, L]"),
        ("positions", np.zeros((2, 2, 30), np.int32), "int32[B, 3, L]"),
        ("segment_ids", np.zeros((2, 29), np.int32), "int32[B, L]"),
        ("segment_ids", np.zeros((2, 30), bool), "int32[B, L]"),
        ("loss_weights", np.zeros((2, 30), np.int32), "float32[B, L]"),
        ("labels", np.zeros((2, 6), np.int32), "int32[B, C]"),
        ("index", np.zeros(3, np.int32), "int32[B]"),
        ("images.pixels", np.zeros((2, 40, 12), np.float32), "uint8[B, P, D]"),
        ("images.hw", np.zeros((2, 40, 3), np.int32), "int32[B, P, 2]"),
        ("images.image_ids", np.zeros((1, 40), np.int32), "int32[B, P]"),
        ("images.window_ids", np.zeros((2, 39), np.int32), "int32[B, P]"),
    ],
)
def test_the_wrong_field_is_named(batch, name, value, spec):
    check_shapes(batch)
    with pytest.raises(AssertionError) as error:
        jax.eval_shape(check_shapes, wrong(batch, name, value))
    assert f"batch.{name} must be {spec}" in str(error.value)


def test_needed_fields_are_named(batch):
    with pytest.raises(AssertionError, match="batch.loss_weights is None"):
        check_shapes(batch, "answer_positions", "loss_weights")


def test_a_model_checks_its_batch(batch):
    short = dataclasses.replace(batch, segment_ids=batch.segment_ids[:, 1:])
    with pytest.raises(AssertionError, match="batch.segment_ids must be"):
        jax.eval_shape(mb.model(), short)


def test_text_rows_are_one_example_each():
    tokens, lengths = np.arange(8, dtype=np.int32).reshape(2, 4), np.array([4, 2])
    host, device = text_rows(tokens, lengths), jax.jit(text_rows)(tokens, lengths)
    check_shapes(host)
    chex.assert_trees_all_equal(host, device)
    assert host.segment_ids.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert host.positions.tolist() == [[[0, 1, 2, 3]] * 3] * 2


def test_joined_batches_keep_their_rows(batch):
    parts = [jax.tree.map(lambda x, b=b: x[b : b + 1], batch) for b in range(2)]
    chex.assert_trees_all_equal(concatenate(parts), batch)
    text = [dataclasses.replace(part, images=None) for part in parts]
    assert concatenate(text).images is None


def test_images_that_do_not_fit_are_an_error():
    image = {
        "patches": np.zeros((4, 3), np.uint8),
        "hw": np.zeros((4, 2), np.int32),
        "window_ids": np.ones(4, np.int32),
    }
    with pytest.raises(ValueError):
        pack_images([[image, image]], 6, 3)
    assert jnp.sum(pack_images([[image, image]], 8, 3).image_ids) == 4 * 1 + 4 * 2
