"""What the fields of a model's JSON files may hold, by their names: sizes are sizes, lists lists.

Hugging Face's names mean the same in all families, so one table serves config.json with its parts
and the description of the image processor. Fields that are not listed are not read.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError

_LARGEST = 1 << 24  # of any size: ten times that of the largest vocabularies
_MOST_PIXELS = 1 << 40
_MOST_UPSCALED = 1 << 25  # pixels that an image of any size is scaled up to
_DEEPEST = 8  # objects in objects

# A null of these says something else than that the field is absent.
_NULL_IS_A_VALUE = {"num_key_value_heads", "sliding_window"}

Kind = tuple[str, Callable[[Any], bool]]
"""What is expected, in words, and whether a value is that."""


def _whole(low: int, high: int) -> Kind:
    def holds(value: Any) -> bool:
        return type(value) is int and low <= value <= high

    return f"a whole number from {low} to {high}", holds


def _number(low: float, high: float) -> Kind:
    def holds(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high and math.isfinite(value)

    return f"a number from {low:g} to {high:g}", holds


def _list_of(kind: Kind, length: int | None = None) -> Kind:
    def holds(value: Any) -> bool:
        fits = isinstance(value, list) and (length is None or len(value) == length)
        return fits and len(value) <= 10_000 and all(map(kind[1], value))

    return f"a list, each {kind[0]}" if length is None else f"{length} times {kind[0]}", holds


def _either(one: Kind, other: Kind) -> Kind:
    return f"{one[0]} or {other[0]}", lambda value: one[1](value) or other[1](value)


_SIZE = _whole(1, _LARGEST)
_COUNT = _whole(0, _LARGEST)
_LAYER = _whole(-_LARGEST, _LARGEST)
_ID = _whole(0, (1 << 31) - 1)
_EPS = _number(1e-30, 1.0)
_FACTOR = _number(1e-9, 1e12)
_FLAG: Kind = ("true or false", lambda value: isinstance(value, bool))
_NAME: Kind = ("a text", lambda value: isinstance(value, str))
_OBJECT: Kind = ("an object", lambda value: isinstance(value, dict))
_SIDE = _whole(1, 1536)
_SIDES = _either(_SIZE, _list_of(_SIZE))

_CONFIG: dict[str, Kind] = {
    **dict.fromkeys(("text_config", "vision_config", "rope_parameters", "rope_scaling"), _OBJECT),
    **dict.fromkeys(
        (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim",
            "num_key_value_heads", "intermediate_size", "depth", "num_heads", "embed_dim",
            "in_channels", "in_chans", "num_channels", "spatial_patch_size", "spatial_merge_size",
            "temporal_patch_size", "out_hidden_size", "window_size", "num_position_embeddings",
            "original_max_position_embeddings", "sliding_window",
        ),
        _SIZE,
    ),
    **dict.fromkeys(("patch_size", "image_size"), _SIDES),
    **dict.fromkeys(
        (
            "image_token_id", "image_token_index", "vision_start_token_id", "vision_end_token_id",
        ),
        _ID,
    ),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps"), _EPS),
    **dict.fromkeys(
        (
            "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "mlp_ratio",
            "partial_rotary_factor",
        ),
        _FACTOR,
    ),
    **dict.fromkeys(
        (
            "tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window",
            "mrope_interleaved", "use_swiglu_ffn", "use_qk_norm", "use_mean_pooling",
            "use_absolute_position_embeddings", "qkv_bias", "multimodal_projector_bias",
        ),
        _FLAG,
    ),
    **dict.fromkeys(
        (
            "model_type", "hidden_act", "projector_hidden_act", "rope_type", "type", "norm_type",
            "vision_feature_select_strategy",
        ),
        _NAME,
    ),
    **dict.fromkeys(("fullatt_block_indexes", "deepstack_visual_indexes"), _list_of(_COUNT)),
    "downsample_ratio": _number(1e-3, 1.0),
    "mrope_section": _list_of(_COUNT, 3),
    "layer_types": _list_of(_NAME),
    "vision_feature_layer": _either(_LAYER, _list_of(_LAYER)),
}  # fmt: skip

_PREPROCESSOR: dict[str, Kind] = {
    **dict.fromkeys(("patch_size", "merge_size", "temporal_patch_size"), _whole(1, 1024)),
    **dict.fromkeys(("min_patches", "max_patches"), _whole(1, 256)),
    **dict.fromkeys(("size", "crop_size"), _either(_SIDE, _OBJECT)),
    **dict.fromkeys(("height", "width"), _SIDE),
    **dict.fromkeys(("min_pixels", "shortest_edge"), _whole(1, _MOST_UPSCALED)),
    **dict.fromkeys(("max_pixels", "longest_edge"), _whole(1, _MOST_PIXELS)),
    **dict.fromkeys(
        (
            "do_center_crop", "do_resize", "do_rescale", "do_normalize", "do_pad",
            "crop_to_patches",
        ),
        _FLAG,
    ),
    "window_size": _SIZE,
    "resample": _whole(0, 5),
    "rescale_factor": _number(1e-6, 1e3),
    "image_mean": _list_of(_number(-1e6, 1e6), 3),
    "image_std": _list_of(_number(1e-6, 1e6), 3),
    "image_processor_type": _NAME,
}  # fmt: skip


def config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json without its fields that are null; raises UserError for a value that its field
    cannot have."""
    return _checked(raw, _CONFIG, "config.json: ", "")


def preprocessor(raw: Mapping[str, Any], path: object) -> dict[str, Any]:
    """The same of what describes an image processor, which lies in the file `path`."""
    return _checked(raw, _PREPROCESSOR, f"{path}: ", "")


def _checked(raw: Mapping[str, Any], kinds: Mapping[str, Kind], where: str, parent: str) -> dict:
    found: dict[str, Any] = {}
    for name, value in raw.items():
        if value is None and name not in _NULL_IS_A_VALUE:
            continue
        if name in kinds and value is not None:
            expected, holds = kinds[name]
            if not holds(value):
                raise UserError(
                    f"{where}{parent}{name} is {reading.shown(value)}; {expected} is expected"
                )
        if isinstance(value, dict) and name in kinds and parent.count(".") < _DEEPEST:
            value = _checked(value, kinds, where, f"{parent}{name}.")
        found[name] = value
    return found
