"""Logits of a tiny model of each family against those transformers gave (golden/make_golden.py)."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import mmsrec_jax
from mmsrec_jax.api import _logits
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.runtime.errors import UserError

TOLERANCE = 1e-4
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module", params=[*QWEN, "llava_clip", "llava_dinov2", "internvl"])
def directory(request):
    return Path(__file__).parents[1] / "golden" / request.param


@pytest.fixture(scope="module")
def model(directory):
    return mmsrec_jax.load(directory)


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
    graphdef, state = nnx.split(model)
    return lambda batch: np.asarray(_logits._logits(graphdef, state, batch))


def end_of_first_image(model, golden) -> int:
    ids, _, images, _ = golden
    slots = model.processor.num_slots(model.processor.grid(*images[0][0].shape[:2]))
    return int(np.flatnonzero(ids[0] == model.config.image_token_id)[slots - 1]) + 1


def test_two_images_in_a_row_and_a_padded_text_row(model, golden):
    ids, mask, images, expected = golden
    logits = mmsrec_jax.logits(model, ids, mask, images)
    assert logits.dtype == np.float32 and logits.shape == expected.shape
    assert distance(logits, golden) <= TOLERANCE
    assert expected[mask.astype(bool)].std() > 0.5  # the tolerance means something


def test_left_padding_gives_the_same_logits(model, golden):
    ids, mask, images, expected = golden
    length = int(mask[1].sum())
    shift = ids.shape[1] - length
    ids, mask = np.stack([ids[0], np.roll(ids[1], shift)]), np.stack([mask[0], mask[1][::-1]])
    logits = mmsrec_jax.logits(model, ids, mask, images)
    assert distance(logits, golden, rows=slice(0, 1)) <= TOLERANCE
    assert np.abs(logits[1, shift:] - expected[1, :length]).max() <= TOLERANCE


def test_batches_of_one_bucket_compile_once(model, golden, forward):
    """Other rows, and fewer images of another size: padding changes nothing."""
    ids, mask, images, expected = golden
    batch = _logits.make_batch(model, ids, mask, images)
    count = batch.images.pixels.shape[1]
    room = count + count // 8 * 4 + 4  # whole blocks of four, but no whole number of tiles

    def widened(batch):
        def padded(x):
            return np.pad(x, [(0, 0), (0, room - x.shape[1])] + [(0, 0)] * (x.ndim - 2))

        return dataclasses.replace(batch, images=jax.tree.map(padded, batch.images))

    assert distance(forward(widened(batch)), golden) <= TOLERANCE
    compiled = _logits._logits._cache_size()
    end = end_of_first_image(model, golden)
    mask = np.stack([mask[1], np.arange(ids.shape[1]) < end])
    other = _logits.make_batch(model, ids[::-1], mask, [[], images[0][:1]])
    logits = forward(widened(other))
    assert _logits._logits._cache_size() == compiled
    length = int(mask[0].sum())
    assert np.abs(logits[0, :length] - expected[1, :length]).max() <= TOLERANCE
    assert np.abs(logits[1, :end] - expected[0, :end]).max() <= TOLERANCE


def test_packed_segments_equal_their_rows(model, golden, forward):
    ids, mask, images, expected = golden
    batch = _logits.make_batch(model, ids, mask, images)
    lengths = mask.sum(1)
    packed = {}
    for key in ("tokens", "positions", "segment_ids"):
        parts = [getattr(batch, key)[b, ..., :n] for b, n in enumerate(lengths)]
        parts = [part * (b + 1) if key == "segment_ids" else part for b, part in enumerate(parts)]
        packed[key] = np.concatenate(parts, axis=-1)[None]
    rows = np.concatenate([expected[b, :n] for b, n in enumerate(lengths)])
    packed = Batch(**packed, images=jax.tree.map(lambda x: x[:1], batch.images))
    assert np.abs(forward(packed)[0] - rows).max() <= TOLERANCE


def test_no_image_sees_a_later_one(model, golden):
    ids, mask, images, expected = golden
    first, second = images[0]
    changed = mmsrec_jax.logits(model, ids, mask, [[first, 255 - second], []])
    end = end_of_first_image(model, golden)
    assert np.abs(changed[0, :end] - expected[0, :end]).max() <= TOLERANCE
    assert distance(changed, golden, rows=slice(0, 1)) > 1000 * TOLERANCE


@pytest.mark.parametrize("directory", QWEN, indirect=True)
def test_what_the_logits_depend_on(model, golden, forward):
    """Each part left out moves the logits at least a thousand times the tolerance."""
    ids, mask, images, _ = golden
    batch = _logits.make_batch(model, ids, mask, images)
    shown = batch.images
    ids_of = shown.image_ids[0]
    windows = [shown.window_ids[0][ids_of == i].max() for i in (1, 2)]
    windowed = model.config.vision.window_size is not None
    assert windows == ([6, 8] if windowed else [1, 2])
    changes = {
        "pixels": np.zeros_like(shown.pixels),
        "positions": np.broadcast_to(np.arange(ids.shape[1]), batch.positions.shape),
        "hw": shown.hw[..., ::-1],
        "image_ids": np.minimum(shown.image_ids, 1),
    }
    if windowed:
        changes["window_ids"] = shown.image_ids
    for key, value in changes.items():
        if key == "positions":
            changed = dataclasses.replace(batch, positions=value.astype(np.int32))
        else:
            images_of = dataclasses.replace(shown, **{key: np.ascontiguousarray(value)})
            changed = dataclasses.replace(batch, images=images_of)
        logits = forward(changed)
        assert distance(logits, golden, rows=slice(0, 1)) > 1000 * TOLERANCE, key
        assert distance(logits, golden, rows=slice(1, 2)) <= TOLERANCE or key == "positions", key


def test_bfloat16_is_near(directory, golden):
    ids, mask, images, expected = golden
    model = mmsrec_jax.load(directory, dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(model))} == {"bfloat16"}
    logits = mmsrec_jax.logits(model, ids, mask, images)
    kept = mask.astype(bool)
    error = np.linalg.norm((logits - expected)[kept]) / np.linalg.norm(expected[kept])
    assert error < 0.05


def test_slots_and_images_must_agree(model, golden):
    ids, mask, images, _ = golden
    count = int((ids == model.config.image_token_id).sum())
    with pytest.raises(UserError, match=f"row 0: {count} image slots in the tokens, but the 1 im"):
        mmsrec_jax.logits(model, ids, mask, [images[0][:1], []])
    with pytest.raises(UserError, match="row 1: 0 image slots"):
        mmsrec_jax.logits(model, ids, mask, [images[0], images[0][:1]])
    with pytest.raises(UserError, match="list of images per row"):
        mmsrec_jax.logits(model, ids, mask, images[:1])


def test_an_unusable_image_is_named(model, golden):
    ids, mask, images, _ = golden
    thread, wide = np.zeros((1, 4000, 3), np.uint8), np.zeros((8, 8, 3), np.uint16)
    with pytest.raises(UserError, match="row 0, image 1: an image of 1 x 4000 .* crop it"):
        mmsrec_jax.logits(model, ids, mask, [[images[0][0], thread], []])
    with pytest.raises(UserError, match="row 1, image 0: .* got uint16 .* 8-bit RGB"):
        mmsrec_jax.logits(model, ids, mask, [images[0], [wide]])
