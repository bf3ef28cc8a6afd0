"""Towers of one image size: golden logits, what they depend on, 8 devices, the strict loader."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from mmsrec_jax import models, sharding
from mmsrec_jax.errors import UserError
from mmsrec_jax.models import api, names, vit
from mmsrec_jax.models.loss import token_logprobs

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["llava_clip", "llava_dinov2", "internvl"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return models.load(GOLDEN / name)


@pytest.fixture(scope="module")
def golden(name):
    stored = np.load(GOLDEN / name / "golden.npz")
    images = [[stored["image_0"], stored["image_1"]], []]
    return stored["input_ids"], stored["attention_mask"], images, stored["logits"]


def distance(logits, golden, rows=slice(None)):
    kept = golden[1].astype(bool)[rows]
    return np.abs(logits[rows] - golden[3][rows])[kept].max()


def test_two_images_in_a_row_and_a_padded_text_row(model, golden):
    ids, mask, images, expected = golden
    assert distance(models.logits(model, ids, mask, images), golden) <= TOLERANCE
    assert expected[mask.astype(bool)].std() > 0.5  # the tolerance means something


def test_rows_have_room_for_more_images_than_they_hold(model, golden):
    """Padding patches, as many as no whole image too, change nothing; nor does the batch compile
    again for other images of the bucket."""
    ids, mask, images, _ = golden
    batch = api.make_batch(model, ids, mask, images)
    room = batch["patches"].shape[1] * 3 // 2 + 3
    for key in ("patches", "patch_hw", "patch_image_ids", "patch_window_ids"):
        width = [(0, 0), (0, room - batch[key].shape[1])] + [(0, 0)] * (batch[key].ndim - 2)
        batch[key] = np.pad(batch[key], width)
    graphdef, state = nnx.split(model)
    assert distance(np.asarray(api._logits(graphdef, state, batch)), golden) <= TOLERANCE
    compiled = api._logits._cache_size()
    batch["patches"] = batch["patches"][:, ::-1]
    other = np.asarray(api._logits(graphdef, state, batch))
    assert api._logits._cache_size() == compiled
    assert distance(other, golden, rows=slice(0, 1)) > 1000 * TOLERANCE
    assert distance(other, golden, rows=slice(1, 2)) <= TOLERANCE


def test_packed_segments_equal_their_rows(model, golden):
    ids, mask, images, expected = golden
    batch = api.make_batch(model, ids, mask, images)
    lengths = mask.sum(1)
    packed = {key: value[:1] for key, value in batch.items() if key.startswith("patch")}
    for key in ("tokens", "positions", "segment_ids"):
        parts = [batch[key][b, ..., :n] for b, n in enumerate(lengths)]
        parts = [part * (b + 1) if key == "segment_ids" else part for b, part in enumerate(parts)]
        packed[key] = np.concatenate(parts, axis=-1)[None]
    logits = np.asarray(api._logits(*nnx.split(model), packed))[0]
    rows = np.concatenate([expected[b, :n] for b, n in enumerate(lengths)])
    assert np.abs(logits - rows).max() <= TOLERANCE


def test_no_image_sees_another(model, golden):
    ids, mask, images, _ = golden
    first, second = images[0]
    swapped = models.logits(model, ids, mask, [[first, 255 - second], []])
    end = int(np.flatnonzero(ids[0] == model.config.image_token_id)[model.processor.slots])
    assert np.abs(swapped[0, :end] - golden[3][0, :end]).max() <= TOLERANCE
    assert distance(swapped, golden, rows=slice(0, 1)) > 1000 * TOLERANCE


def test_bfloat16_is_near(name, golden):
    ids, mask, images, expected = golden
    logits = models.logits(models.load(GOLDEN / name, dtype="bfloat16"), ids, mask, images)
    kept = mask.astype(bool)
    assert np.linalg.norm((logits - expected)[kept]) < 0.05 * np.linalg.norm(expected[kept])


def test_slots_and_images_must_agree(model, golden):
    ids, mask, images, _ = golden
    slots = model.processor.slots
    with pytest.raises(UserError, match=f"row 0: {2 * slots} image slots.* 1 images .*{slots}$"):
        models.logits(model, ids, mask, [images[0][:1], []])
    with pytest.raises(ValueError, match="one image has 16"):
        model.vision(jnp.zeros((1, 15, 48), jnp.uint8), None, None, None)


def update(name, golden, mesh):
    """Logits, loss, gradients and parameters after a step of gradient descent."""
    ids, mask, images, _ = golden
    model = models.load(GOLDEN / name, mesh=mesh)
    batch = api.make_batch(model, ids, mask, images)
    batch = {key: np.tile(value, (4,) + (1,) * (value.ndim - 1)) for key, value in batch.items()}
    graphdef, params = nnx.split(model)

    def loss(params, batch):
        model = nnx.merge(graphdef, params)
        hidden = model(batch)
        logprobs = token_logprobs(model, hidden, batch["tokens"], chunk=64)
        return -jnp.sum(logprobs * (batch["segment_ids"] > 0)), model.unembed(hidden)

    @jax.jit
    def step(params, batch):
        (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        return value, logits, grads, jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)

    with jax.set_mesh(mesh):
        placed = jax.device_put(batch, sharding.batch_sharding(mesh))
        return step(params, placed)


def test_eight_devices_equal_one(name, golden):
    one = update(name, golden, sharding.make_mesh(devices=jax.devices()[:1]))
    # three heads do not divide by two
    value, logits, grads, params = update(name, golden, sharding.make_mesh(2, 4, 1))
    assert float(value) == pytest.approx(float(one[0]), rel=1e-5)
    np.testing.assert_allclose(logits, one[1], atol=TOLERANCE)
    for got, expected in ((grads, one[2]), (params, one[3])):
        largest = max(float(jnp.abs(b).max()) for b in jax.tree.leaves(expected))
        for (path, a), (_, b) in zip(
            jax.tree.leaves_with_path(got), jax.tree.leaves_with_path(expected), strict=True
        ):
            scale = max(float(jnp.abs(b).max()), largest / 100)  # keys' biases have no gradient
            np.testing.assert_allclose(a, b, atol=1e-4 * scale, err_msg=jax.tree_util.keystr(path))
    up = grads["vision"]["layers"]["up"]["kernel"][...]
    assert up.sharding.shard_shape(up.shape) == (up.shape[0], 16 // 4, up.shape[2])


@pytest.mark.parametrize("new, old", [(12, 18), (16, 37), (9, 5), (7, 7)])
def test_bicubic_keeps_constants_and_lines(new, old):
    weights = vit.bicubic(new, old)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    if new == old:
        np.testing.assert_array_equal(weights, np.eye(old))
    inner = slice(old // new + new // old + 2, -(old // new + new // old + 2))
    place = (np.arange(new) + 0.5) * old / new - 0.5
    # the kernel with a = -0.75 is not exact for lines, but near
    np.testing.assert_allclose((weights @ np.arange(old))[inner], place[inner], atol=0.1)


def test_unshuffle_puts_blocks_together():
    grid = np.arange(8).reshape(1, 8, 1)  # two rows of four
    out = np.asarray(vit.unshuffle(jnp.asarray(grid), (2, 4), 2))
    assert out.tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7]]]


@pytest.fixture
def directory(tmp_path):
    """A copy of a golden directory to break."""
    return Path(shutil.copytree(GOLDEN / "llava_clip", tmp_path / "model"))


def edit_tensors(directory, edit):
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors")


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_names_of_every_layout_load(directory):
    expected = jax.tree.leaves(nnx.state(models.load(directory)))

    def renamed(tensors, *pairs):
        for name in list(tensors):
            for theirs, ours in pairs:
                if name.startswith(theirs):
                    tensors[name.replace(theirs, ours, 1)] = tensors.pop(name)
                    break

    published = (("vision_tower.", "vision_tower.vision_model."),)
    memory = (("language_model.model.", "model.language_model."),
              ("language_model.lm_head.", "lm_head."),
              ("vision_tower.vision_model.", "model.vision_tower."),
              ("multi_modal_projector.", "model.multi_modal_projector."))  # fmt: skip
    for pairs in (published, memory):
        edit_tensors(directory, lambda tensors, pairs=pairs: renamed(tensors, *pairs))
        state = jax.tree.leaves(nnx.state(models.load(directory)))
        assert all(np.array_equal(a, b) for a, b in zip(state, expected, strict=True))


def test_what_the_features_do_not_depend_on_is_not_read(directory):
    """The layer after the selected one and the norm of the pooled output may be absent."""

    def edit(tensors):
        unused = [name for name in tensors if ".layers.2." in name or "post_layernorm" in name]
        assert len(unused) == 18
        for name in unused:
            del tensors[name]

    edit_tensors(directory, edit)
    models.load(directory)
    edit_json(directory / "config.json", vision_feature_layer=-1)
    with pytest.raises(UserError, match=r"vision_tower.encoder.layers.2.\S+ \[16\] is missing"):
        models.load(directory)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda t: t.pop("vision_tower.pre_layrnorm.bias"), r"pre_layrnorm.bias \[16\] is missing"),
        (lambda t: t.pop("multi_modal_projector.linear_2.weight"), r"linear_2.weight \[24, 24\]"),
        (
            lambda t: t.update({"vision_tower.encoder.layers.3.mlp.fc1.bias": np.ones(3)}),
            "layers.3.mlp.fc1.bias has no place in a llava model",
        ),
        (
            lambda t: t.update({"vision_tower.embeddings.position_embedding.weight": np.ones(5)}),
            r"position_embedding.weight has shape \[5\], config.json asks for \[17, 16\]",
        ),
    ],
)
def test_wrong_tensors_are_named(directory, edit, message):
    edit_tensors(directory, edit)
    with pytest.raises(UserError, match=message):
        models.load(directory)


def sub_config(directory, part, **changes):
    raw = json.loads((directory / "config.json").read_text())
    edit_json(directory / "config.json", **{part: raw[part] | changes})


@pytest.mark.parametrize(
    "part, change, message",
    [
        (None, {"model_type": "llava_next"}, "'llava_next' is not supported; supported: .*llava"),
        (None, {"vision_feature_layer": -4}, "vision_feature_layer -4 is none of the 3 layers"),
        (None, {"vision_feature_select_strategy": "cls"}, "select_strategy 'cls' is not supported"),
        (None, {"projector_hidden_act": "relu"}, "projector_hidden_act 'relu'"),
        ("vision_config", {"model_type": "vit"}, "vision_config.model_type 'vit' is not supported"),
        ("vision_config", {"image_size": 20}, "images of 4 x 4 patches, but .* are for 5 x 5"),
        ("vision_config", {"hidden_act": "relu"}, "hidden_act 'relu'"),
        ("text_config", {"model_type": "gemma"}, "text_config.model_type 'gemma'.*'llama'"),
        ("text_config", {"attention_bias": True}, "attention_bias True"),
        ("text_config", {"model_type": "mistral", "sliding_window": 9}, "sliding_window"),
        ("text_config", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn'"),
    ],
)
def test_unsupported_settings(directory, part, change, message):
    if part is None:
        edit_json(directory / "config.json", **change)
    else:
        sub_config(directory, part, **change)
    with pytest.raises(UserError, match=message) as error:
        models.load(directory)
    assert str(error.value).startswith(str(directory / "config.json"))


def test_published_text_config_leaves_out_what_the_decoder_assumes():
    raw = json.loads((GOLDEN / "llava_clip" / "config.json").read_text())
    raw["text_config"] = {"model_type": "llama", "vocab_size": 32064, "rms_norm_eps": 1e-5}
    text = names.config_from_hf(raw).text
    assert (text.hidden, text.layers, text.kv_heads, text.intermediate) == (4096, 32, 32, 11008)
    assert (text.vocab_size, text.norm_eps, text.rope_theta, text.rope_kind) == (
        32064, 1e-5, 1e4, "1d",
    )  # fmt: skip
