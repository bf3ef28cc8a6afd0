"""Decoders without a vision tower: logits of transformers, config.json, images refused."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_text_model
from flax import nnx

import mmsrec_jax
from mmsrec_jax.hf import mapping, presets
from mmsrec_jax.models import rope
from mmsrec_jax.models.config import DecoderConfig, RopeScaling
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-4
FAMILIES = ("llama", "qwen2", "qwen3")
LLAMA_3_1 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 8192}  # fmt: skip


# --- numbers --------------------------------------------------------------------------------------


def golden(name):
    stored = np.load(GOLDEN / name / "golden.npz")
    return stored["input_ids"], stored["attention_mask"], stored["logits"]


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits(name, devices):
    """Of one device, and of eight that divide the weights."""
    ids, mask, expected = golden(name)
    mesh = None if devices == 1 else sharding.make_mesh(1, 4, 2)
    model = mmsrec_jax.load(GOLDEN / name, mesh=mesh)
    assert model.vision is None and model.processor is None
    logits = mmsrec_jax.logits(model, ids, mask, [[], []])
    assert np.abs(logits - expected)[mask > 0].max() <= TOLERANCE
    assert expected[mask > 0].std() > 0.5  # the tolerance means something


def test_left_padding_gives_the_same_logits():
    ids, mask, expected = golden("llama")
    length = int(mask[0].sum())
    shift = ids.shape[1] - length
    assert shift
    model = mmsrec_jax.load(GOLDEN / "llama")
    logits = mmsrec_jax.logits(model, np.roll(ids[:1], shift), mask[:1, ::-1], [[]])
    assert np.abs(logits[0, shift:] - expected[0, :length]).max() <= TOLERANCE


def test_stretched_frequencies():
    """Against the three cases of the published code, one frequency at a time."""
    scaling = RopeScaling(8.0, 1.0, 4.0, 8192)
    config = DecoderConfig(8, 512, 1, 8, 8, 64, 8, rope_kind="1d", rope_theta=5e5)
    scaled = DecoderConfig(
        8, 512, 1, 8, 8, 64, 8, rope_kind="1d", rope_theta=5e5, rope_scaling=scaling
    )
    one = np.ones((1, 3, 1), np.int32)  # at position 1 the angles are the frequencies

    def frequencies(config):
        cos, sin = rope.text(one, config)
        return np.arctan2(sin, cos).reshape(-1)

    expected, cases = [], set()
    for frequency in frequencies(config):
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4:
            case, value = "kept", frequency
        elif wavelength > 8192 / 1:
            case, value = "divided", frequency / 8
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            case, value = "between", (1 - smooth) * frequency / 8 + smooth * frequency
        cases.add(case)
        expected.append(value)
    assert cases == {"kept", "divided", "between"}
    np.testing.assert_allclose(frequencies(scaled), expected, rtol=1e-5)


# --- config.json ----------------------------------------------------------------------------------


def decoder(**raw):
    return mapping.config_from_hf({"hidden_size": 1024, "num_attention_heads": 64, **raw}).text


@pytest.mark.parametrize("name", FAMILIES)
def test_what_transformers_assumes(name):
    """Checked against transformers' config classes by parity/test_parity_text_only.py."""
    text = decoder(model_type=name)
    assert (text.norm_eps, text.rope_theta, text.rope_scaling, text.layers) == (1e-6, 1e4, None, 32)
    assert (text.rope_kind, text.tied) == ("1d", False)
    assert (text.qkv_bias, text.qk_norm) == (name == "qwen2", name == "qwen3")
    assert text.vocab_size == (32000 if name == "llama" else 151936)
    assert text.intermediate == (11008 if name == "llama" else 22016)
    assert text.head_dim == (128 if name == "qwen3" else 16)
    assert decoder(model_type=name, num_key_value_heads=None).kv_heads == 64


def test_a_number_of_key_heads_that_is_left_out():
    found = {name: decoder(model_type=name).kv_heads for name in FAMILIES}
    assert found == {"llama": 64, "qwen2": 32, "qwen3": 32}


def test_rope_in_both_spellings():
    old = decoder(model_type="llama", rope_theta=5e5, rope_scaling=LLAMA_3_1)
    new = decoder(model_type="llama", rope_parameters=LLAMA_3_1 | {"rope_theta": 5e5})
    assert old == new
    assert old.rope_theta == 5e5 and old.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"attention_bias": True}, "attention_bias True is not supported"),
        ({"mlp_bias": True}, "mlp_bias True is not supported"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window attention"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "low_freq_factor is missing"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_not_supported_is_named(name, fields, message):
    with pytest.raises(UserError, match=f"^config.json: .*{message}"):
        decoder(model_type=name, **fields)


def test_a_directory_without_a_tower(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    assert mapping.is_text_only(tmp_path) and mapping.processor_of(tmp_path) is None
    assert not mapping.is_text_only(GOLDEN / "qwen3_vl")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", "mlp_bias": True}))
    with pytest.raises(UserError, match=f"^{tmp_path / 'config.json'}: mlp_bias True"):
        mapping.is_text_only(tmp_path)


@pytest.mark.parametrize(
    "name, parameters",  # as published, a tied head counted once
    [
        ("smollm2-135m", 134_515_008),
        ("llama-3.2-1b", 1_235_814_400),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
    ],
)
def test_published_sizes(name, parameters):
    config = presets.config(name)
    model = nnx.eval_shape(lambda: MLLM(config, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model))) == parameters


# --- the public face ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    texts = ["a mug, a lamp", "a red mug"] * 9
    return tiny_text_model.write(tmp_path_factory.mktemp("small") / "model", texts)


def test_texts_and_vectors(directory):
    model = mmsrec_jax.load(directory)
    vectors = mmsrec_jax.embed(model, directory, ["a mug", "a red lamp", ""])
    assert vectors.shape == (3, 32) and vectors[:2].any(1).all() and not vectors[2].any()
    texts = mmsrec_jax.generate(model, directory, ["a mug", "a lamp"], max_new_tokens=3)
    assert len(texts) == 2 and texts[0] != texts[1]


def test_images_are_refused(directory):
    model, image = mmsrec_jax.load(directory), np.zeros((8, 8, 3), np.uint8)
    ids = np.array([[30, 31]])
    with pytest.raises(UserError, match="images are given, but the model is text-only"):
        mmsrec_jax.logits(model, ids, np.ones_like(ids), [[image]])
    with pytest.raises(UserError, match="row 1: images are given, but the model is text-only"):
        mmsrec_jax.embed(model, directory, ["a mug", "a lamp"], [None, image])
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a mug"}]}
    with pytest.raises(UserError, match="row 0: images are given, but the model is text-only"):
        mmsrec_jax.generate(model, directory, [[message]], [[image]], max_new_tokens=2)
    with pytest.raises(UserError, match="row 0: 0 images for 1 image parts"):
        mmsrec_jax.generate(model, directory, [[message]], max_new_tokens=2)
