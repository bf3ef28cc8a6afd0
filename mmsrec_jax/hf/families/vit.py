"""What LLaVA and InternVL share: text configs, ViT towers of one image size, names of tensors."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmsrec_jax.hf import fields
from mmsrec_jax.hf.families import text as decoders
from mmsrec_jax.hf.families.base import (
    Family,
    ParamSpec,
    decoder_params,
    linear,
    located,
    need,
    only,
)
from mmsrec_jax.hf.fixed_size import FixedSizeProcessor
from mmsrec_jax.hf.processor import read_json
from mmsrec_jax.models.config import DecoderConfig, MLLMConfig, VitConfig
from mmsrec_jax.runtime.errors import UserError

_TEXTS = {"llama", "mistral", "qwen2"}

_TOWER = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
          "num_attention_heads": 12, "image_size": 224, "num_channels": 3}  # fmt: skip
# What transformers assumes for fields of vision_config that a file leaves out, by its model_type.
_TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip_vision_model": (
        "clip",
        _TOWER | {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    ),
    "siglip_vision_model": (
        "siglip",
        _TOWER | {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    ),
    "dinov2": (
        "dinov2",
        _TOWER | {"patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "mlp_ratio": 4},
    ),
    "internvl_vision": (
        "internvl",
        _TOWER
        | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
           "num_attention_heads": 16, "image_size": 448, "patch_size": 14, "hidden_act": "gelu",
           "layer_norm_eps": 1e-6, "attention_bias": False},
    ),
}  # fmt: skip


def family(model_type: str, towers: tuple[str, ...], image_token_fields: tuple[str, ...]) -> Family:
    """A family whose tower is one of `towers`; the first of `image_token_fields` that is there
    holds the id of the image token."""

    def config(raw: dict, images: FixedSizeProcessor | None) -> MLLMConfig:
        found = next((name for name in image_token_fields if raw.get(name) is not None), None)
        return MLLMConfig(
            text=text(raw),
            vision=vision(raw, images, towers),
            image_token_id=need(raw, found or image_token_fields[0]),
            vision_start_token_id=None,
            vision_end_token_id=None,
            family=model_type,
        )

    return Family(
        model_type=model_type,
        config=config,
        leaves=leaves,
        processor=lambda directory: _processor(directory, towers),
        unused=unused,
    )


def _processor(directory: Path, towers: tuple[str, ...]) -> FixedSizeProcessor:
    """The processor of a directory with the slots of its model."""
    path = directory / "config.json"
    with located(path):
        raw = fields.config(read_json(path))
        patch_size = _square(_tower(raw, towers)[1], "patch_size")
    made = FixedSizeProcessor.from_pretrained(directory, patch_size)
    with located(path):
        return dataclasses.replace(made, slots=vision(raw, made, towers).slots)


def text(raw: dict) -> DecoderConfig:
    """Of the `text_config` of a config.json."""
    own = need(raw, "text_config")
    kind = own.get("model_type", "llama")
    only({"text_config.model_type": kind}, "text_config.model_type", _TEXTS, None)
    tied = raw.get("tie_word_embeddings") or own.get("tie_word_embeddings")
    return decoders.decoder(kind, own, tied=tied)


def vision(raw: dict, images: FixedSizeProcessor | None, towers: tuple[str, ...]) -> VitConfig:
    """Of the `vision_config` and the projector's fields; raises UserError as `config_from_hf`."""
    kind, tower = _tower(raw, towers)
    patch_size, image_size = _square(tower, "patch_size"), _square(tower, "image_size")
    side = image_size // patch_size
    if side < 1:
        raise UserError(
            f"config.json: vision_config.patch_size {patch_size} exceeds image_size {image_size}"
        )
    if images is None:
        images = FixedSizeProcessor(patch_size, (image_size, image_size), slots=0)
    only(tower, "num_channels", {3}, 3)
    only(tower, "hidden_act", {"gelu", "gelu_pytorch_tanh", "quick_gelu"}, None)
    only(tower, "use_swiglu_ffn", {False}, False)
    only(tower, "use_qk_norm", {False}, False)
    only(tower, "norm_type", {"layer_norm"}, "layer_norm")
    only(tower, "use_mean_pooling", {True}, True)
    only(tower, "use_absolute_position_embeddings", {True}, True)
    only(raw, "projector_hidden_act", {"gelu"}, "gelu")
    only(raw, "vision_feature_select_strategy", {"default", "full"}, "default")
    intermediate = tower["intermediate_size"]
    if kind == "dinov2":
        intermediate = int(tower["hidden_size"] * tower["mlp_ratio"])
    return VitConfig(
        kind=kind,
        hidden=tower["hidden_size"],
        heads=tower["num_attention_heads"],
        intermediate=intermediate,
        patch_size=patch_size,
        grid=images.patches,
        position_grid=side,
        checkpoint_depth=tower["num_hidden_layers"],
        activation=tower["hidden_act"],
        norm_eps=float(tower["layer_norm_eps"]),
        feature_layers=_feature_layers(raw, tower["num_hidden_layers"], kind),
        keep_first=raw.get("vision_feature_select_strategy") == "full",
        merge=round(1 / raw.get("downsample_ratio", 0.5)) if kind == "internvl" else 1,
        qkv_bias=tower.get("qkv_bias", tower.get("attention_bias", True)),
        projector_bias=raw.get("multimodal_projector_bias", True),
        # The tower divides pixels by 255; another rescale_factor goes into mean and deviation.
        image_mean=tuple(mean / (255 * images.rescale) for mean in images.mean),
        image_std=tuple(std / (255 * images.rescale) for std in images.std),
    )


def _tower(raw: dict, towers: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """(kind, vision_config with what its file leaves out)."""
    own = need(raw, "vision_config")
    model_type = own.get("model_type", towers[0])
    only({"vision_config.model_type": model_type}, "vision_config.model_type", set(towers), None)
    kind, assumed = _TOWERS[model_type]
    return kind, assumed | {name: value for name, value in own.items() if value is not None}


def _square(tower: dict, field: str) -> int:
    value = tower[field]
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise UserError(f"config.json: vision_config.{field} {value} is not supported: not square")
    return sides.pop()


def _feature_layers(raw: dict, depth: int, kind: str) -> tuple[int, ...]:
    """`vision_feature_layer`, one or several, negative from the end, as layers from 1."""
    chosen = raw.get("vision_feature_layer", -1 if kind == "internvl" else -2)
    chosen = [chosen] if isinstance(chosen, int) else list(chosen)
    layers = tuple(layer if layer >= 0 else depth + 1 + layer for layer in chosen)
    if not layers or any(not 1 <= layer <= depth for layer in layers):
        raise UserError(
            f"config.json: vision_feature_layer {raw.get('vision_feature_layer')} is none of the "
            f"{depth} layers of the tower"
        )
    return layers


@dataclasses.dataclass(frozen=True)
class _Names:
    """What a kind of tower calls its parts; `block` holds the layers, `{}` for the number."""

    patch: str
    positions: str
    class_token: str
    block: str
    norms: tuple[str, str]
    attention: str
    out: str
    scales: tuple[str, str] = ("", "")


_CLIP = _Names(
    patch="embeddings.patch_embedding",
    positions="embeddings.position_embedding.weight",
    class_token="embeddings.class_embedding",
    block="encoder.layers.{}.",
    norms=("layer_norm1", "layer_norm2"),
    attention="self_attn.{}_proj",
    out="self_attn.out_proj",
)
_DINOV2 = _Names(
    patch="embeddings.patch_embeddings.projection",
    positions="embeddings.position_embeddings",
    class_token="embeddings.cls_token",
    block="encoder.layer.{}.",
    norms=("norm1", "norm2"),
    attention="attention.{}_proj",
    out="attention.o_proj",
    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
)
_NAMES = {
    "clip": _CLIP,
    "siglip": _CLIP,
    "dinov2": _DINOV2,
    "internvl": dataclasses.replace(
        _DINOV2,
        norms=("layernorm_before", "layernorm_after"),
        out="attention.projection_layer",
        scales=("lambda_1", "lambda_2"),
    ),
}


def leaves(config: MLLMConfig) -> Iterator[ParamSpec]:
    """Every parameter of the decoder, the tower and the projector."""
    yield from decoder_params(config.text)
    tower = _tower_of(config)
    names = _NAMES[tower.kind]
    block, ours = f"vision_tower.{names.block}", "vision.layers."
    yield ParamSpec("vision.embeddings.patch_embed.kernel", f"vision_tower.{names.patch}.weight")
    if tower.patch_bias:
        yield ParamSpec("vision.embeddings.patch_embed.bias", f"vision_tower.{names.patch}.bias")
    yield ParamSpec("vision.embeddings.positions", f"vision_tower.{names.positions}")
    if tower.class_token:
        yield ParamSpec("vision.embeddings.class_token", f"vision_tower.{names.class_token}")
    if tower.pre_norm:
        yield from _norm("vision.pre_norm", "vision_tower.pre_layrnorm")  # their spelling
    for norm, theirs in zip(("attn_norm", "mlp_norm"), names.norms, strict=True):
        yield from _norm(ours + norm, block + theirs)
    for letter in "qkv":
        theirs = block + names.attention.replace("{}", letter)
        yield from linear(ours + letter, theirs, tower.qkv_bias)
    yield from linear(ours + "o", block + names.out, in_axes=2)
    yield from linear(ours + "up", block + "mlp.fc1")
    yield from linear(ours + "down", block + "mlp.fc2")
    if tower.layer_scale:
        for scale, theirs in zip(("attn_scale", "mlp_scale"), names.scales, strict=True):
            yield ParamSpec(ours + scale, block + theirs)
    if tower.merge > 1:
        yield from _norm("vision.projector.norm", "multi_modal_projector.layer_norm")
    for number in (1, 2):
        theirs = f"multi_modal_projector.linear_{number}"
        yield from linear(f"vision.projector.fc{number}", theirs, tower.projector_bias)


def _tower_of(config: MLLMConfig) -> VitConfig:
    assert isinstance(config.vision, VitConfig), "families of this file have such a tower"
    return config.vision


def _norm(ours: str, theirs: str) -> Iterator[ParamSpec]:
    yield ParamSpec(ours + ".scale", theirs + ".weight")
    yield ParamSpec(ours + ".bias", theirs + ".bias")


_UNUSED = re.compile(
    r"vision_tower\.(head\.|post_layernorm\.|layernorm\.|embeddings\.(mask_token|position_ids)$)"
)
_LAYER = re.compile(r"vision_tower\.encoder\.layers?\.(\d+)\.")


def unused(name: str, config: MLLMConfig) -> bool:
    """What comes after the last layer the projector reads: layers, final norm, pooling head."""
    layer = _LAYER.match(name)
    if layer is not None:
        tower = _tower_of(config)
        return tower.depth <= int(layer[1]) < tower.checkpoint_depth
    return _UNUSED.match(name) is not None
