"""Qwen2.5-VL (arXiv 2502.13923)."""

from collections.abc import Iterator

from mmsrec_jax.hf.families import qwen_vl
from mmsrec_jax.hf.families.base import Family, ParamSpec, need, only
from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.models.config import MLLMConfig, VisionConfig

MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def _config(raw: dict, processor: ImageProcessor | None) -> MLLMConfig:
    def vision(fields: dict, text_hidden: int) -> VisionConfig:
        return _vision(fields, text_hidden, processor or ImageProcessor())

    return qwen_vl.read_config(raw, FAMILY.model_type, vision, rope_kind="mrope", qkv_bias=True)


def _vision(raw: dict, text_hidden: int, processor: ImageProcessor) -> VisionConfig:
    only(raw, "hidden_act", {"silu"}, "silu")
    only(raw, "out_hidden_size", {text_hidden}, text_hidden)
    return VisionConfig(
        depth=need(raw, "depth"),
        hidden=need(raw, "hidden_size"),
        heads=need(raw, "num_heads"),
        intermediate=need(raw, "intermediate_size"),
        fullatt_block_indexes=tuple(need(raw, "fullatt_block_indexes")),
        window_size=need(raw, "window_size"),
        **qwen_vl.patch_fields(raw, processor),
    )


def _leaves(config: MLLMConfig) -> Iterator[ParamSpec]:
    return qwen_vl.leaves(config, MLP, qwen_vl.MERGER)


FAMILY = Family(
    model_type="qwen2_5_vl",
    config=_config,
    leaves=_leaves,
    processor=ImageProcessor.from_pretrained,
)
