"""Towers of one image size: their arithmetic and the strict loader. Logits: test_golden.py."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import mmsrec_jax
from mmsrec_jax.hf import mapping
from mmsrec_jax.models import vit
from mmsrec_jax.runtime.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"


def test_a_row_shorter_than_one_image():
    model = mmsrec_jax.load(GOLDEN / "llava_clip")
    with pytest.raises(ValueError, match="one image has 16"):
        model.vision(jnp.zeros((1, 15, 48), jnp.uint8), None, None, None)


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
    expected = jax.tree.leaves(nnx.state(mmsrec_jax.load(directory)))

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
        state = jax.tree.leaves(nnx.state(mmsrec_jax.load(directory)))
        assert all(np.array_equal(a, b) for a, b in zip(state, expected, strict=True))


def test_what_the_features_do_not_depend_on_is_not_read(directory):
    """The layer after the selected one and the norm of the pooled output may be absent."""

    def edit(tensors):
        unused = [name for name in tensors if ".layers.2." in name or "post_layernorm" in name]
        assert len(unused) == 18
        for name in unused:
            del tensors[name]

    edit_tensors(directory, edit)
    mmsrec_jax.load(directory)
    edit_json(directory / "config.json", vision_feature_layer=-1)
    with pytest.raises(UserError, match=r"vision_tower.encoder.layers.2.\S+ \[16\] is missing"):
        mmsrec_jax.load(directory)


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
        mmsrec_jax.load(directory)


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
        mmsrec_jax.load(directory)
    assert str(error.value).startswith(str(directory / "config.json"))


def test_published_text_config_leaves_out_what_the_decoder_assumes():
    raw = json.loads((GOLDEN / "llava_clip" / "config.json").read_text())
    raw["text_config"] = {"model_type": "llama", "vocab_size": 32064, "rms_norm_eps": 1e-5}
    text = mapping.config_from_hf(raw).text
    assert (text.hidden, text.layers, text.kv_heads, text.intermediate) == (4096, 32, 32, 11008)
    assert (text.vocab_size, text.norm_eps, text.rope_theta, text.rope_kind) == (
        32064, 1e-5, 1e4, "1d",
    )  # fmt: skip
