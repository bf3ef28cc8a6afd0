"""What is written is what was read: names, bits, shards, merged adapters, all or nothing."""

import json
import shutil
from pathlib import Path

import export_runs
import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import mmsrec_jax
from mmsrec_jax.hf import exporting, mapping
from mmsrec_jax.hf.exporting import Adapters
from mmsrec_jax.hf.processor import read_json
from mmsrec_jax.models import lora
from mmsrec_jax.runtime.errors import UserError

GOLDENS = Path(__file__).parents[1] / "golden"
GOLDEN = GOLDENS / "qwen2_5_vl"
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_clip", "llava_dinov2", "internvl")


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture
def base(request, tmp_path, dtype):
    """A golden directory in `dtype`."""
    family = getattr(request, "param", "qwen2_5_vl")
    directory = Path(shutil.copytree(GOLDENS / family, tmp_path / "base"))
    tensors = load_file(directory / "model.safetensors")
    tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def tensors_of(directory):
    return {k: v for f in directory.glob("*.safetensors") for k, v in load_file(f).items()}


def same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


def copy(out, base=GOLDEN):
    exporting.write_model(out, exporting.of_directory(base), base, dtype="bfloat16")


@pytest.mark.parametrize("base", FAMILIES, indirect=True)
@pytest.mark.parametrize("source", ["model", "directory"])
def test_every_tensor_comes_back_bit_for_bit(base, dtype, source, tmp_path):
    if source == "model":
        parameters = exporting.of_model(mmsrec_jax.load(base, dtype))
    else:
        parameters = exporting.of_directory(base)
    out = tmp_path / "out"
    exporting.write_model(out, parameters, base, dtype=dtype)
    same_bits(tensors_of(out), tensors_of(base))
    with safe_open(out / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    written, given = (json.loads((d / "config.json").read_text()) for d in (out, base))
    assert written["dtype"] == written["text_config"]["dtype"] == dtype
    for config in (written, given, *(written[k] for k in ("text_config", "vision_config"))):
        config.pop("dtype", None)
    assert written == given
    assert mapping.processor_of(out) == mapping.processor_of(base)


def test_shards_hold_the_same_tensors(base, dtype, tmp_path):
    out = tmp_path / "deep" / "out"
    exporting.write_model(
        out, exporting.of_directory(base), base, dtype=dtype, max_shard_bytes=4000
    )
    same_bits(tensors_of(out), tensors_of(base))
    files = sorted(out.glob("*.safetensors"))
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors" and len(files) > 3
    index = json.loads((out / "model.safetensors.index.json").read_text())
    for file in files:
        held = load_file(file)
        assert {name for name, f in index["weight_map"].items() if f == file.name} == set(held)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= 4000
    total = sum(tensor.nbytes for tensor in tensors_of(base).values())
    assert index["metadata"]["total_size"] == total
    mmsrec_jax.load(out)


def test_a_tied_head_is_not_written(tmp_path):
    base, out = Path(shutil.copytree(GOLDEN, tmp_path / "base")), tmp_path / "out"
    raw = read_json(base / "config.json") | {"tie_word_embeddings": True}
    (base / "config.json").write_text(json.dumps(raw))
    copy(out, base)
    expected = tensors_of(base)
    del expected["lm_head.weight"]
    same_bits(tensors_of(out), expected)


def test_names_are_those_of_the_base_and_what_we_do_not_read_is_carried_over(tmp_path):
    base, out = Path(shutil.copytree(GOLDEN, tmp_path / "base")), tmp_path / "out"
    tensors = {
        name.replace("visual.", "model.visual.").replace(
            "model.l", "model.language_model.l"
        ): tensor
        for name, tensor in tensors_of(GOLDEN).items()
    }
    tensors["model.rotary_emb.inv_freq"] = np.arange(4).astype(ml_dtypes.bfloat16)
    save_file(tensors, base / "model.safetensors")
    copy(out, base)
    same_bits(tensors_of(out), tensors)


def test_without_weights_to_follow_names_are_those_of_transformers(tmp_path):
    base, out = Path(shutil.copytree(GOLDEN, tmp_path / "base")), tmp_path / "out"
    parameters = exporting.of_directory(GOLDEN)
    (base / "model.safetensors").unlink()
    exporting.write_model(out, parameters, base, dtype="bfloat16")
    prefixes = {name.rsplit("layers.", 1)[0] for name in tensors_of(out) if "layers." in name}
    assert prefixes == {"model.language_model."}
    assert {mapping.canonical(name) for name in tensors_of(out)} == {
        mapping.canonical(name) for name in tensors_of(GOLDEN)
    }


def test_write_undoes_read():
    rng = np.random.default_rng(0)
    for leaf, shape in (
        (mapping.ParamSpec("o", "o", in_axes=2), (3, 4, 5)),
        (mapping.ParamSpec("q", "q", in_axes=1), (3, 4, 5)),
        (mapping.ParamSpec("b", "b", in_axes=0), (4, 5)),
        (mapping.ParamSpec("conv", "conv"), (4, 3, 2)),
    ):
        parameter = rng.normal(size=shape)
        tensor = leaf.write(parameter)
        assert tensor.shape == leaf.tensor_shape(shape)
        np.testing.assert_array_equal(leaf.read(tensor, shape), parameter)


def test_merging_adds_in_float32_and_casts_last(base, dtype, tmp_path):
    """base + alpha / rank * B @ A of the files that peft reads, in Hugging Face's layout."""
    model = export_runs.trained_model(base, "lora", dtype)
    adapters = export_runs.adapters_of(model)
    exporting.write_adapters(tmp_path / "peft", adapters, base, dtype="float32", base_name=None)
    factors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert len(factors) == 2 * 7 * 2
    for out in ("float32", "bfloat16"):
        merged = exporting.merged(exporting.of_directory(base), adapters)
        exporting.write_model(tmp_path / out, merged, base, dtype=out)
    before, wide = tensors_of(base), tensors_of(tmp_path / "float32")
    scale, changed = export_runs.ALPHA / export_runs.RANK, 0
    for name, tensor in wide.items():
        module = "base_model.model." + name.removesuffix(".weight").replace(
            "model.layers", "model.language_model.layers"
        )
        expected = before[name].astype(np.float32)
        if f"{module}.lora_A.weight" in factors:
            update = factors[f"{module}.lora_B.weight"] @ factors[f"{module}.lora_A.weight"]
            expected, changed = expected + np.float32(scale) * update, changed + 1
        np.testing.assert_allclose(tensor, expected, atol=1e-6, rtol=0)
    assert changed == 14
    narrow = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in wide.items()}
    same_bits(tensors_of(tmp_path / "bfloat16"), narrow)

    lora.merge(model)
    ours = jax.tree.leaves(nnx.state(model))
    theirs = jax.tree.leaves(nnx.state(mmsrec_jax.load(tmp_path / dtype, dtype)))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(
            np.float32(a), np.float32(b), rtol=1e-6 if dtype == "float32" else 1e-2, atol=1e-6
        )


def test_adapters_in_memory_are_not_lost_silently():
    model = export_runs.trained_model(GOLDEN, "lora")
    with pytest.raises(UserError, match="lora.merge"):
        exporting.of_model(model)


def test_a_folder_with_content_is_left_alone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=f"{out} is there and not empty; name a new folder"):
        copy(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (out / "notes.txt").unlink()
    copy(out)
    same_bits(tensors_of(out), tensors_of(GOLDEN))


def test_a_failed_export_leaves_nothing(tmp_path):
    parameters, calls = exporting.of_directory(GOLDEN), []

    def cut(leaf, layer):
        calls.append(leaf)
        value = parameters(leaf, layer)
        return value if len(calls) < 9 else value[..., :-1]

    with pytest.raises(UserError, match="weights of another model"):
        exporting.write_model(tmp_path / "out", cut, GOLDEN, dtype="bfloat16")
    assert len(calls) == 9 and not list(tmp_path.iterdir())


def test_a_full_disk_is_said_before_writing(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="GiB free; choose another folder"):
        exporting.write_model(
            tmp_path / "out", exporting.of_directory(GOLDEN), GOLDEN, dtype="bfloat16"
        )
    assert not list(tmp_path.iterdir())


def test_adapters_of_another_model_are_refused(tmp_path):
    factors = {"text.layers.q": (np.zeros((5, 24, 2)), np.zeros((5, 2, 3, 8)))}
    with pytest.raises(UserError, match="no text.layers.q of 5 layers"):
        exporting.write_adapters(
            tmp_path / "out", Adapters(factors, 1.0), GOLDEN, dtype="float32", base_name=None
        )
