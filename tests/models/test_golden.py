"""Logits of tiny Qwen-VLs against those transformers gave (tests/golden/make_golden.py)."""

from pathlib import Path

import jax
import numpy as np
import pytest

from mmsrec_jax import models
from mmsrec_jax.errors import UserError
from mmsrec_jax.models import api

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def directory(request):
    return Path(__file__).parents[1] / "golden" / request.param


@pytest.fixture(scope="module")
def model(directory):
    return models.load(directory)


@pytest.fixture(scope="module")
def golden(directory):
    stored = np.load(directory / "golden.npz")
    images = [[stored["image_0"], stored["image_1"]], []]
    return stored["input_ids"], stored["attention_mask"], images, stored["logits"]


def distance(logits, golden, rows=slice(None)):
    kept = golden[1].astype(bool)[rows]
    return np.abs(logits[rows] - golden[3][rows])[kept].max()


@pytest.fixture(scope="module")
def forward(model):
    """Logits of a batch after changes to it."""
    graphdef, state = api.nnx.split(model)
    return lambda batch: np.asarray(api._logits(graphdef, state, batch))


def test_two_images_in_a_row_and_a_padded_text_row(model, golden):
    ids, mask, images, expected = golden
    logits = models.logits(model, ids, mask, images)
    assert logits.dtype == np.float32 and logits.shape == expected.shape
    assert distance(logits, golden) <= TOLERANCE
    assert expected[mask.astype(bool)].std() > 0.5  # the tolerance means something


def test_left_padding_gives_the_same_logits(model, golden):
    ids, mask, images, expected = golden
    length = int(mask[1].sum())
    shift = ids.shape[1] - length
    ids, mask = np.stack([ids[0], np.roll(ids[1], shift)]), np.stack([mask[0], mask[1][::-1]])
    logits = models.logits(model, ids, mask, images)
    assert distance(logits, golden, rows=slice(0, 1)) <= TOLERANCE
    assert np.abs(logits[1, shift:] - expected[1, :length]).max() <= TOLERANCE


def test_what_the_logits_depend_on(model, golden, forward):
    """Each part left out moves the logits at least a thousand times the tolerance."""
    ids, mask, images, _ = golden
    batch = api.make_batch(model, ids, mask, images)
    ids_of = batch["patch_image_ids"][0]
    windows = [batch["patch_window_ids"][0][ids_of == i].max() for i in (1, 2)]
    windowed = model.config.vision.window_size is not None
    assert windows == ([6, 8] if windowed else [1, 2])
    changes = {
        "patches": np.zeros_like(batch["patches"]),
        "positions": np.broadcast_to(np.arange(ids.shape[1]), batch["positions"].shape),
        "patch_hw": batch["patch_hw"][..., ::-1],
        "patch_image_ids": np.minimum(batch["patch_image_ids"], 1),
    }
    if windowed:
        changes["patch_window_ids"] = batch["patch_image_ids"]
    for key, value in changes.items():
        logits = forward(batch | {key: np.ascontiguousarray(value, batch[key].dtype)})
        assert distance(logits, golden, rows=slice(0, 1)) > 1000 * TOLERANCE, key
        assert distance(logits, golden, rows=slice(1, 2)) <= TOLERANCE or key == "positions", key


def test_loaded_into_a_mesh(directory, golden):
    from mmsrec_jax import sharding

    ids, mask, images, _ = golden
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=1, devices=jax.devices()[:4])
    model = models.load(directory, mesh=mesh)
    assert not model.text.layers.gate.kernel[...].sharding.is_fully_replicated
    with jax.set_mesh(mesh):
        logits = models.logits(model, ids, mask, images)
    assert distance(logits, golden) <= TOLERANCE


def test_bfloat16_is_near(directory, golden):
    ids, mask, images, expected = golden
    model = models.load(directory, dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(api.nnx.state(model))} == {"bfloat16"}
    logits = models.logits(model, ids, mask, images)
    kept = mask.astype(bool)
    error = np.linalg.norm((logits - expected)[kept]) / np.linalg.norm(expected[kept])
    assert error < 0.05


def test_slots_and_images_must_agree(model, golden):
    ids, mask, images, _ = golden
    with pytest.raises(UserError, match="row 0: 23 image slots in the tokens, but the 1 images"):
        models.logits(model, ids, mask, [images[0][:1], []])
    with pytest.raises(UserError, match="row 1: 0 image slots"):
        models.logits(model, ids, mask, [images[0], images[0][:1]])
    with pytest.raises(UserError, match="list of images per row"):
        models.logits(model, ids, mask, images[:1])


def test_an_unusable_image_is_named(model, golden):
    ids, mask, images, _ = golden
    thread, wide = np.zeros((1, 4000, 3), np.uint8), np.zeros((8, 8, 3), np.uint16)
    with pytest.raises(UserError, match="row 0, image 1: an image of 1 x 4000 .* crop it"):
        models.logits(model, ids, mask, [[images[0][0], thread], []])
    with pytest.raises(UserError, match="row 1, image 0: .* got uint16 .* 8-bit RGB"):
        models.logits(model, ids, mask, [images[0], [wide]])
