"""Directories as they are published, and as they go wrong."""

import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import mmsrec_jax
from mmsrec_jax.hf import loading, mapping
from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "qwen2_5_vl"

# config.json of Qwen2.5-VL-3B-Instruct as published: flat, text fields at the top level
PUBLISHED = json.loads((GOLDEN.parent / "qwen2_5_vl_3b_config.json").read_text())


@pytest.fixture
def directory(tmp_path):
    """A copy of the golden directory to break."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "model"))


@pytest.fixture(scope="module")
def golden_state():
    return jax.tree.leaves(nnx.state(mmsrec_jax.load(GOLDEN)))


def same_state(directory, golden_state):
    state = jax.tree.leaves(nnx.state(mmsrec_jax.load(directory)))
    return all(np.array_equal(a, b) for a, b in zip(state, golden_state, strict=True))


def edit_tensors(directory, edit):
    tensors = load_file(directory / "model.safetensors")
    save_file(edit(tensors) or tensors, directory / "model.safetensors")


def edit_config(directory, **changes):
    config = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))


def shard(directory):
    """Tensors in two files with an index; the layers of a stacked parameter lie in both."""
    tensors = load_file(directory / "model.safetensors")
    order = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": order[::2],
             "model-00002-of-00002.safetensors": order[1::2]}  # fmt: skip
    for file, members in parts.items():
        save_file({name: tensors[name] for name in members}, directory / file)
    (directory / "model.safetensors").unlink()
    weight_map = {name: file for file, members in parts.items() for name in members}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def test_published_flat_config():
    config = mapping.config_from_hf(PUBLISHED)
    text, vision = config.text, config.vision
    assert (text.hidden, text.layers, text.heads, text.kv_heads, text.head_dim) == (
        2048,
        36,
        16,
        2,
        128,
    )
    assert (text.vocab_size, text.intermediate, text.norm_eps) == (151936, 11008, 1e-6)
    assert (text.rope_kind, text.rope_theta, text.mrope_section) == ("mrope", 1e6, (16, 24, 24))
    assert text.tied and text.qkv_bias and not text.qk_norm
    assert (vision.depth, vision.hidden, vision.heads, vision.intermediate) == (32, 1280, 16, 3420)
    assert (vision.window_size, vision.fullatt_block_indexes) == (112, (7, 15, 23, 31))
    assert (vision.patch_size, vision.merge, vision.temporal_patch_size) == (14, 2, 2)
    assert (config.image_token_id, config.vision_start_token_id, config.vision_end_token_id) == (
        151655,
        151652,
        151653,
    )


def published(name):
    return mapping.config_from_hf(json.loads((GOLDEN.parent / f"{name}_config.json").read_text()))


def test_published_qwen2_vl():
    config = published("qwen2_vl_2b")
    text, vision = config.text, config.vision
    assert (text.hidden, text.layers, text.heads, text.head_dim) == (1536, 28, 12, 128)
    assert text.tied and text.qkv_bias and not text.qk_norm
    assert (vision.depth, vision.hidden, vision.intermediate) == (32, 1280, 5120)
    assert (vision.norm, vision.activation, vision.gated) == ("layer", "quick_gelu", False)
    assert (vision.window_size, vision.position_grid, vision.patch_bias) == (None, 0, False)
    assert vision.patch_size == 14


def test_published_qwen3_vl():
    config = published("qwen3_vl_4b")
    text, vision = config.text, config.vision
    assert (text.hidden, text.layers, text.heads, text.head_dim) == (2560, 36, 32, 128)
    assert (text.rope_kind, text.rope_theta) == ("mrope_interleaved", 5e6)
    assert text.mrope_section == (24, 20, 20)
    assert text.tied and text.qk_norm and not text.qkv_bias
    assert (vision.depth, vision.hidden, vision.intermediate) == (24, 1024, 4096)
    assert (vision.activation, vision.gated) == ("gelu_pytorch_tanh", False)
    assert (vision.position_grid, vision.deepstack_indexes) == (48, (5, 11, 17))
    assert (vision.patch_size, vision.patch_bias, vision.image_mean) == (16, True, (0.5,) * 3)


def test_flat_and_nested_config_of_one_model_agree():
    raw = json.loads((GOLDEN / "config.json").read_text())
    text = raw.pop("text_config")
    rope = text.pop("rope_parameters")
    flat = text | raw | {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
    }  # fmt: skip
    nested = json.loads((GOLDEN / "config.json").read_text())
    assert mapping.config_from_hf(flat) == mapping.config_from_hf(nested)


def test_pixel_statistics_come_from_the_preprocessor():
    processor = ImageProcessor(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), rescale=1 / 127.5)
    vision = mapping.config_from_hf(PUBLISHED, processor).vision
    pixel = np.array([10.0, 100.0, 200.0])
    expected = (pixel / 127.5 - processor.mean) / processor.std
    np.testing.assert_allclose((pixel / 255 - vision.image_mean) / vision.image_std, expected)


def test_both_name_layouts_and_shards(directory, golden_state):
    assert same_state(directory, golden_state)

    def rename(tensors):
        return {
            name.replace("visual.", "model.visual.", 1)
            if name.startswith("visual.")
            else name.replace("model.", "model.language_model.", 1): tensor
            for name, tensor in tensors.items()
        }

    edit_tensors(directory, rename)
    assert same_state(directory, golden_state)
    shard(directory)
    assert same_state(directory, golden_state)


def test_tied_head_ignores_its_copy(directory):
    edit_config(directory, tie_word_embeddings=True)
    model = mmsrec_jax.load(directory)
    assert model.text.head is None
    edit_tensors(directory, lambda tensors: tensors.pop("lm_head.weight") is None)
    mmsrec_jax.load(directory)


def test_missing_tensor(directory):
    edit_tensors(directory, lambda t: t.pop("model.layers.1.mlp.up_proj.weight") is None)
    with pytest.raises(UserError, match=r"model: tensor .*layers.1.mlp.up_proj.weight \[40, 24\]"):
        mmsrec_jax.load(directory)


def test_extra_tensor(directory):
    edit_tensors(directory, lambda t: t.update({"model.layers.2.mlp.up_proj.weight": np.ones(3)}))
    with pytest.raises(
        UserError, match=r"safetensors: model.layers.2.mlp.up_proj.weight has no place"
    ):
        mmsrec_jax.load(directory)


def test_misshapen_tensor(directory):
    name = "visual.blocks.0.attn.qkv.weight"
    edit_tensors(directory, lambda t: t.update({name: np.ascontiguousarray(t[name].T)}))
    with pytest.raises(UserError, match=r"attn.qkv.weight has shape \[16, 48\].* \[48, 16\]"):
        mmsrec_jax.load(directory)


@pytest.mark.parametrize("family, name", [
    ("qwen2_vl", "model.visual.merger.ln_q.bias"),
    ("qwen3_vl", "model.visual.pos_embed.weight"),
    ("qwen3_vl", "model.visual.deepstack_merger_list.1.linear_fc2.weight"),
    ("qwen3_vl", "model.language_model.layers.2.self_attn.q_norm.weight"),
])  # fmt: skip
def test_tensors_of_the_other_families(family, name, tmp_path):
    """Each is asked for by name and shape, and a tensor of another name has no place."""
    directory = Path(shutil.copytree(GOLDEN.parent / family, tmp_path / "model"))
    intact = load_file(directory / "model.safetensors")
    name = next(n for n in intact if mapping.canonical(n) == mapping.canonical(name))
    ours, shape = mapping.canonical(name), list(intact[name].shape)
    edit_tensors(directory, lambda t: t.pop(name) is None)
    with pytest.raises(UserError) as error:
        mmsrec_jax.load(directory)
    assert f"tensor {ours} {shape} is missing" in str(error.value)
    save_file(intact | {name: intact[name][:-1]}, directory / "model.safetensors")
    with pytest.raises(UserError) as error:
        mmsrec_jax.load(directory)
    assert f"{name} has shape {[shape[0] - 1, *shape[1:]]}" in str(error.value)
    save_file(intact | {name + "2": intact[name]}, directory / "model.safetensors")
    with pytest.raises(UserError, match="2 has no place in a qwen"):
        mmsrec_jax.load(directory)


@pytest.mark.parametrize("change, message", [
    ({"text_config": {"attention_bias": True}}, "attention_bias True is not supported"),
    ({"text_config": {"rope_theta": None}}, "rope_theta is missing"),
    ({"text_config": {"num_hidden_layers": 2}}, "more entries than the decoder's 2 layers"),
    ({"vision_config": {"num_position_embeddings": 2300}}, "2300 is not a square"),
    ({"vision_config": {"hidden_act": "relu"}}, "hidden_act 'relu' is not supported"),
    ({"vision_config": {"deepstack_visual_indexes": [5, 24]}}, "ascending layers below 24"),
])  # fmt: skip
def test_unsupported_settings_of_qwen3_vl(change, message):
    raw = json.loads((GOLDEN.parent / "qwen3_vl_4b_config.json").read_text())
    for part, fields in change.items():
        raw[part] |= fields
    with pytest.raises(UserError, match=message):
        mapping.config_from_hf(raw)


@pytest.mark.parametrize("dtype, stored", [("int8", "I8"), ("float8_e4m3fn", "F8_E4M3")])
def test_quantized_tensor(directory, dtype, stored):
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(directory, lambda t: t.update({name: np.zeros((40, 24), dtype)}))
    with pytest.raises(UserError, match=f"{name} is stored as {stored}; .* fetch the model in"):
        mmsrec_jax.load(directory)


DAMAGE = {
    "cut short": lambda data: data[:-1000],
    "cut in the header": lambda data: data[:200],
    "empty": lambda data: b"",
    "header overwritten": lambda data: data[:8] + b"\xff" * 100 + data[108:],
    "a pointer of git-lfs": lambda data: b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_file(directory, damage):
    path = directory / "model.safetensors"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(UserError, match="damaged or cut short, fetch it again") as error:
        mmsrec_jax.load(directory)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_damaged_index(directory):
    shard(directory)
    index = directory / "model.safetensors.index.json"
    index.write_text(index.read_text()[:-40])
    with pytest.raises(UserError, match="index.json: not valid JSON"):
        mmsrec_jax.load(directory)


def test_weights_of_another_family(directory):
    def rename(tensors):
        return {
            name.replace("visual.blocks", "vision_tower.encoder.layers"): tensor
            for name, tensor in tensors.items()
        }

    edit_tensors(directory, rename)
    with pytest.raises(UserError, match="are of different models; fetch both again") as error:
        mmsrec_jax.load(directory)
    assert str(directory / "model.safetensors") in str(error.value)
    assert "not of this qwen2_5_vl model" in str(error.value)


def test_absent_files(directory):
    weight_map = shard(directory)
    victim = sorted(set(weight_map.values()))[1]
    tensors = load_file(directory / victim)
    name = sorted(tensors)[0]
    save_file({k: v for k, v in tensors.items() if k != name}, directory / victim)
    with pytest.raises(UserError, match=f"{victim}: {name} is missing, though .*index.json lists"):
        mmsrec_jax.load(directory)
    (directory / victim).unlink()
    with pytest.raises(UserError, match=f"{victim}: no such file"):
        mmsrec_jax.load(directory)
    (directory / "config.json").unlink()
    with pytest.raises(UserError, match="config.json: no such file"):
        mmsrec_jax.load(directory)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "mistral"}, "'mistral' is not supported; supported: qwen2_vl, qwen2_5_vl"),
        ({"image_token_id": None}, "image_token_id is missing"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; supported: 'silu'"),
        ({"use_sliding_window": True}, "sliding"),
        ({"rope_scaling": {"type": "yarn", "mrope_section": [16, 24, 24]}}, "rope_type 'yarn'"),
        ({"rope_scaling": None}, "mrope_section is missing"),
        (
            {"hidden_size": 4096, "num_attention_heads": 32},
            "out_hidden_size 2048 is not supported; supported: 4096",
        ),
    ],
)
def test_unsupported_settings(directory, change, message):
    (directory / "config.json").write_text(json.dumps(PUBLISHED | change))
    (directory / "preprocessor_config.json").write_text("{}")
    with pytest.raises(UserError, match=message) as error:
        mmsrec_jax.load(directory)
    assert str(directory / "config.json") in str(error.value)


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (1, 4, 2)])
def test_shards_are_read_alone(monkeypatch, sizes):
    """Every device holds its part of the file's values, and of tensors that the mesh divides along
    their rows a shard reads its own rows."""
    directory = GOLDEN.parent / "qwen2_5_vl"
    whole = nnx.to_flat_state(nnx.state(mmsrec_jax.load(directory)))
    read: dict[str, int] = {}

    def counting(self, name, shape, rows=slice(None), **memory):
        values = original(self, name, shape, rows, **memory)
        read[name] = max(read.get(name, 0), len(values))
        return values

    original = loading.Tensors.read
    monkeypatch.setattr(loading.Tensors, "read", counting)
    model = mmsrec_jax.load(directory, mesh=sharding.make_mesh(*sizes))
    for (path, sharded), (_, expected) in zip(
        nnx.to_flat_state(nnx.state(model)), whole, strict=True
    ):
        for shard in sharded.get_value().addressable_shards:
            np.testing.assert_array_equal(shard.data, expected[...][shard.index], str(path))
    # down is [mlp, embed] here: FSDP divides the rows of its tensor [embed, mlp].
    down = "text.layers.0.mlp.down_proj.weight"
    assert read[down] == loading.Tensors(directory)[down].shape[0] // sizes[1]


def test_checkpoint_in_another_dtype(directory, golden_state):
    """bfloat16 in the file, float32 in memory: the very values."""

    def narrow(tensors):
        return {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}

    edit_tensors(directory, narrow)
    state = jax.tree.leaves(nnx.state(mmsrec_jax.load(directory)))
    for ours, exact in zip(state, golden_state, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, np.asarray(exact).astype(ml_dtypes.bfloat16))


def test_few_rows_at_a_time(monkeypatch, golden_state):
    monkeypatch.setattr(loading, "_CHUNK", 1)
    monkeypatch.setattr(loading, "_STRIP", 5)
    assert same_state(GOLDEN, golden_state)
