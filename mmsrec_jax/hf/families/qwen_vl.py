"""What the Qwen-VL families share: the layout of config.json and of tensor names."""

from collections.abc import Callable, Iterator
from typing import Any

from mmsrec_jax.hf.families.base import (
    ParamSpec,
    decoder_config,
    decoder_params,
    linear,
    need,
    only,
    rope_fields,
)
from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.models.config import MLLMConfig, VisionConfig

MERGER = {"norm": "ln_q", "fc1": "mlp.0", "fc2": "mlp.2"}  # of Qwen2-VL and Qwen2.5-VL


def read_config(
    raw: dict, family: str, vision: Callable[[dict, int], VisionConfig], **text: Any
) -> MLLMConfig:
    """MLLMConfig of a file nested (transformers 5) or flat (as published in 2025).

    `vision` makes a tower's config of its fields and the decoder's width; `text` are fields of
    DecoderConfig. Raises UserError for settings that are not supported and for missing fields.
    """
    nested = raw.get("text_config")
    body = raw if nested is None else nested
    return MLLMConfig(
        text=decoder_config(
            body,
            tied=raw.get("tie_word_embeddings") or body.get("tie_word_embeddings"),
            mrope_section=tuple(need(rope_fields(body), "mrope_section")),
            **text,
        ),
        vision=vision(need(raw, "vision_config"), need(body, "hidden_size")),
        image_token_id=need(raw, "image_token_id"),
        vision_start_token_id=need(raw, "vision_start_token_id"),
        vision_end_token_id=need(raw, "vision_end_token_id"),
        family=family,
    )


def patch_fields(raw: dict, processor: ImageProcessor) -> dict[str, Any]:
    """Fields of VisionConfig about patches and pixels, of a `vision_config`."""
    only(raw, "in_channels", {3}, raw.get("in_chans", 3))
    return {
        "patch_size": raw.get("patch_size")
        or raw.get("spatial_patch_size")
        or processor.patch_size,
        "merge": raw.get("spatial_merge_size", 2),
        "temporal_patch_size": raw.get("temporal_patch_size", 2),
        # The tower divides pixels by 255; another rescale_factor goes into mean and deviation.
        "image_mean": tuple(mean / (255 * processor.rescale) for mean in processor.mean),
        "image_std": tuple(std / (255 * processor.rescale) for std in processor.std),
    }


def leaves(config: MLLMConfig, mlp: dict[str, str], merger: dict[str, str]) -> Iterator[ParamSpec]:
    """Every parameter but those of position grid and DeepStack.

    `mlp` and `merger` give the names under `mlp.` of a block and under `visual.` by ours.
    """
    yield from decoder_params(config.text)
    if config.vision is None:
        return
    assert isinstance(config.vision, VisionConfig), "Qwen-VL families have such a tower"
    bias = config.vision.norm == "layer"
    block = "visual.blocks.{}."
    yield ParamSpec("vision.patch_embed.kernel", "visual.patch_embed.proj.weight")
    if config.vision.patch_bias:
        yield ParamSpec("vision.patch_embed.bias", "visual.patch_embed.proj.bias")
    yield from norm("vision.layers.attn_norm", block + "norm1", bias)
    yield from norm("vision.layers.mlp_norm", block + "norm2", bias)
    for index, ours in enumerate("qkv"):
        yield from linear(f"vision.layers.{ours}", block + "attn.qkv", part=(index, 3))
    yield from linear("vision.layers.o", block + "attn.proj", in_axes=2)
    for ours, theirs in mlp.items():
        yield from linear(f"vision.layers.{ours}", f"{block}mlp.{theirs}")
    yield from merger_params("vision.merger", "visual.merger", merger, bias)


def merger_params(ours: str, theirs: str, names: dict[str, str], bias: bool) -> Iterator[ParamSpec]:
    """The parameters of a `Merger`; `bias` of its norm."""
    yield from norm(f"{ours}.norm", f"{theirs}.{names['norm']}", bias)
    for name in ("fc1", "fc2"):
        yield from linear(f"{ours}.{name}", f"{theirs}.{names[name]}")


def norm(ours: str, theirs: str, bias: bool) -> Iterator[ParamSpec]:
    """The scale of a norm, and its bias where it has one."""
    yield ParamSpec(ours + ".scale", theirs + ".weight")
    if bias:
        yield ParamSpec(ours + ".bias", theirs + ".bias")
