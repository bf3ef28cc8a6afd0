"""Qwen2.5-VL (arXiv 2502.13923)."""

from collections.abc import Iterator

from mmsrec_jax.models.config import MLLMConfig, VisionConfig
from mmsrec_jax.models.families.base import (
    Family,
    Leaf,
    decoder_config,
    decoder_leaves,
    linear,
    need,
    only,
    rope_fields,
)
from mmsrec_jax.models.processor import ImageProcessor


def _config(raw: dict, processor: ImageProcessor | None) -> MLLMConfig:
    """Of a file nested (transformers 5) or flat (as published in 2025)."""
    nested = raw.get("text_config")
    text = raw if nested is None else nested
    return MLLMConfig(
        text=decoder_config(
            text,
            tied=raw.get("tie_word_embeddings") or text.get("tie_word_embeddings"),
            rope_kind="mrope",
            mrope_section=tuple(need(rope_fields(text), "mrope_section")),
            qkv_bias=True,
        ),
        vision=_vision(need(raw, "vision_config"), need(text, "hidden_size"), processor),
        image_token_id=need(raw, "image_token_id"),
        vision_start_token_id=need(raw, "vision_start_token_id"),
        vision_end_token_id=need(raw, "vision_end_token_id"),
        family=FAMILY.model_type,
    )


def _vision(raw: dict, text_hidden: int, processor: ImageProcessor | None) -> VisionConfig:
    only(raw, "hidden_act", {"silu"}, "silu")
    only(raw, "in_channels", {3}, raw.get("in_chans", 3))
    only(raw, "out_hidden_size", {text_hidden}, text_hidden)
    processor = processor or ImageProcessor()
    return VisionConfig(
        depth=need(raw, "depth"),
        hidden=need(raw, "hidden_size"),
        heads=need(raw, "num_heads"),
        intermediate=need(raw, "intermediate_size"),
        fullatt_block_indexes=tuple(need(raw, "fullatt_block_indexes")),
        patch_size=raw.get("patch_size") or raw.get("spatial_patch_size", 14),
        merge=raw.get("spatial_merge_size", 2),
        temporal_patch_size=raw.get("temporal_patch_size", 2),
        window_size=need(raw, "window_size"),
        # The tower divides pixels by 255; another rescale_factor goes into mean and deviation.
        image_mean=tuple(mean / (255 * processor.rescale) for mean in processor.mean),
        image_std=tuple(std / (255 * processor.rescale) for std in processor.std),
    )


def _leaves(config: MLLMConfig) -> Iterator[Leaf]:
    yield from decoder_leaves(config.text)
    if config.vision is None:
        return
    block = "visual.blocks.{}."
    yield Leaf("vision.patch_embed.kernel", "visual.patch_embed.proj.weight")
    yield Leaf("vision.layers.attn_norm.scale", block + "norm1.weight")
    yield Leaf("vision.layers.mlp_norm.scale", block + "norm2.weight")
    for index, ours in enumerate("qkv"):
        yield from linear(f"vision.layers.{ours}", block + "attn.qkv", part=(index, 3))
    yield from linear("vision.layers.o", block + "attn.proj", in_axes=2)
    for ours in ("gate", "up", "down"):
        yield from linear(f"vision.layers.{ours}", f"{block}mlp.{ours}_proj")
    yield Leaf("vision.merger.norm.scale", "visual.merger.ln_q.weight")
    yield from linear("vision.merger.fc1", "visual.merger.mlp.0")
    yield from linear("vision.merger.fc2", "visual.merger.mlp.2")


FAMILY = Family(
    model_type="qwen2_5_vl",
    config=_config,
    leaves=_leaves,
    processor=ImageProcessor.from_pretrained,
)
