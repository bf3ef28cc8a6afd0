"""Qwen2-VL (arXiv 2409.12191)."""

from collections.abc import Iterator

from mmsrec_jax.hf.families import qwen_vl
from mmsrec_jax.hf.families.base import Family, ParamSpec, need, only
from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.models.config import ACTIVATIONS, MLLMConfig, VisionConfig


def _config(raw: dict, processor: ImageProcessor | None) -> MLLMConfig:
    def vision(fields: dict, text_hidden: int) -> VisionConfig:
        return _vision(fields, text_hidden, processor or ImageProcessor())

    return qwen_vl.read_config(raw, FAMILY.model_type, vision, rope_kind="mrope", qkv_bias=True)


def _vision(raw: dict, text_hidden: int, processor: ImageProcessor) -> VisionConfig:
    only(raw, "hidden_size", {text_hidden}, None)  # here the merger's, not the tower's
    only(raw, "hidden_act", set(ACTIVATIONS), "quick_gelu")
    hidden = need(raw, "embed_dim")
    return VisionConfig(
        depth=need(raw, "depth"),
        hidden=hidden,
        heads=need(raw, "num_heads"),
        intermediate=int(hidden * raw.get("mlp_ratio", 4)),
        window_size=None,
        norm="layer",
        activation=raw.get("hidden_act", "quick_gelu"),
        gated=False,
        **qwen_vl.patch_fields(raw, processor),
    )


def _leaves(config: MLLMConfig) -> Iterator[ParamSpec]:
    return qwen_vl.leaves(config, {"up": "fc1", "down": "fc2"}, qwen_vl.MERGER)


FAMILY = Family(
    model_type="qwen2_vl",
    config=_config,
    leaves=_leaves,
    processor=ImageProcessor.from_pretrained,
)
