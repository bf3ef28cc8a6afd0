"""An exported folder holds every tensor that the loaders of vLLM and of tpu-inference want, and
none that they refuse."""

import json
import shutil
from pathlib import Path

import pytest
import tpu_inference_parameters
import vllm_parameters
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import mmsrec_jax
from mmsrec_jax.hf import exporting

GOLDENS = Path(__file__).parents[1] / "golden"
TOWER, PUBLISHED = "vision_tower.", "vision_tower.vision_model."  # of CLIP, in what is published


def shapes(folder):
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}


@pytest.mark.parametrize(
    "name",
    ["llama", "qwen2", "qwen3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_clip", "internvl"],
)
def test_vllm_finds_every_parameter(name, tmp_path):
    base, out = Path(shutil.copytree(GOLDENS / name, tmp_path / "base")), tmp_path / "out"
    if name == "llava_clip":
        tensors = load_file(base / "model.safetensors")
        renamed = {key.replace(TOWER, PUBLISHED, 1): value for key, value in tensors.items()}
        save_file(renamed, base / "model.safetensors", metadata={"format": "pt"})
    parameters = exporting.of_model(mmsrec_jax.load(base, "float32"))
    exporting.write_model(out, parameters, base, dtype="bfloat16")
    config = json.loads((out / "config.json").read_text())
    assert vllm_parameters.loaded(config, shapes(out)) == vllm_parameters.wanted(config)
    if name == "qwen2_5_vl":  # the only one with pictures that tpu-inference has
        assert shapes(out) == tpu_inference_parameters.wanted(config)


def test_the_lists_see_what_is_missing_and_what_is_too_much():
    folder = GOLDENS / "qwen2_5_vl"
    config, tensors = json.loads((folder / "config.json").read_text()), shapes(folder)
    wanted = vllm_parameters.wanted(config)
    assert vllm_parameters.loaded(config, tensors) == wanted
    norm = {name: shape for name, shape in tensors.items() if "ln_q" not in name}
    assert vllm_parameters.loaded(config, norm) != wanted
    assert vllm_parameters.loaded(config, tensors | {"visual.more": (1,)}) != wanted
    part = {name: shape for name, shape in tensors.items() if "0.self_attn.k_proj" not in name}
    with pytest.raises(AssertionError, match="parts"):
        vllm_parameters.loaded(config, part)
    # Names that transformers 5 gives lead somewhere in vLLM, and nowhere in tpu-inference.
    assert tensors == tpu_inference_parameters.wanted(config)
    newer = {name.replace("visual.", "model.visual.", 1): tensors[name] for name in tensors}
    assert newer != tensors and vllm_parameters.loaded(config, newer) == wanted
    # A tower named as transformers 5 saves it is one that vLLM does not find: docs/faq.md says so.
    folder = GOLDENS / "llava_clip"
    config, tensors = json.loads((folder / "config.json").read_text()), shapes(folder)
    assert vllm_parameters.loaded(config, tensors) != vllm_parameters.wanted(config)
