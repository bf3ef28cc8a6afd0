"""Live against transformers: published configs ask for the names and shapes of its models.

Run with `make parity`; skipped without torch.
"""

import json
from pathlib import Path

import pytest
from flax import nnx
from pairs import hf, torch, transformers

from mmsrec_jax.hf import mapping
from mmsrec_jax.hf.presets import CONFIGS
from mmsrec_jax.models.mllm import MLLM

pytestmark = pytest.mark.parity

# LLaVA-1.5-7B, whose text_config leaves out what Llama assumes
LLAVA = {
    "model_type": "llava",
    "image_token_index": 32000,
    "text_config": {"model_type": "llama", "vocab_size": 32064, "rms_norm_eps": 1e-5},
    "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024,
                      "image_size": 336, "intermediate_size": 4096, "patch_size": 14,
                      "num_attention_heads": 16, "num_hidden_layers": 24},
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}  # fmt: skip


def asked_and_held(raw):
    """Names and shapes of tensors, on no memory: those that we ask for, those of transformers."""
    config = mapping.config_from_hf(raw)
    ours = nnx.eval_shape(
        lambda: MLLM(config, rngs=nnx.Rngs(0), param_dtype="bfloat16", dtype="bfloat16")
    )
    shapes = {".".join(path): v.shape for path, v in nnx.to_flat_state(nnx.state(ours))}
    leaves = list(mapping.leaves(config))
    assert {leaf.path for leaf in leaves} == set(shapes)
    asked = {}
    for leaf in leaves:
        count, *shape = shapes[leaf.path] if leaf.stacked else (1, *shapes[leaf.path])
        for layer in range(count):
            asked[leaf.name.format(layer)] = leaf.tensor_shape(tuple(shape))
    with torch.device("meta"):
        theirs_config = transformers.CONFIG_MAPPING[raw["model_type"]](**raw)
        theirs = hf.auto_class(theirs_config).from_config(theirs_config)
    held = {mapping.canonical(n): tuple(p.shape) for n, p in theirs.named_parameters()}
    return config, asked, held


@pytest.mark.parametrize(
    "name, count", [("qwen2_vl_2b", 729), ("qwen2_5_vl_3b", 824), ("qwen3_vl_4b", 713)]
)
def test_qwen_vl(name, count):
    """All have tied heads."""
    raw = json.loads((Path(hf.__file__).parent / f"{name}_config.json").read_text())
    _, asked, held = asked_and_held(raw)
    assert len(held) == count
    assert asked == held


@pytest.mark.parametrize("name", [n for n, raw in CONFIGS.items() if "vision_config" not in raw])
def test_text_only(name):
    config, asked, held = asked_and_held(CONFIGS[name])
    assert config.vision is None and config.text.tied
    assert asked == held


def test_llava():
    config, asked, held = asked_and_held(LLAVA)
    assert (config.text.layers, config.text.kv_heads, config.vision.slots) == (32, 32, 576)
    unused = {name for name in held if mapping.ignored(name, config)}
    assert unused == {name for name in held if "post_layernorm" in name or ".layers.23." in name
                      and name.startswith("vision_tower")}  # fmt: skip
    assert asked == {name: shape for name, shape in held.items() if name not in unused}
