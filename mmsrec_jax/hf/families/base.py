"""What a family of models is, and the parts of config.json and of tensor names they share."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmsrec_jax.models.config import DecoderConfig, MLLMConfig, RopeScaling
from mmsrec_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """One of our parameters and the tensors of Hugging Face it is made of.

    name: canonical tensor name; `{}` is the layer of a stacked parameter.
    in_axes: None for what is stored as it is. Else the tensor is [out, in] with our leading
      `in_axes` axes flattened into in and the others into out; 0 for a bias [out].
    part: (i, n) when the tensor holds n of our parameters one after the other on axis 0.
    """

    path: str
    name: str
    in_axes: int | None = None
    part: tuple[int, int] = (0, 1)

    @property
    def stacked(self) -> bool:
        return "{}" in self.name

    def tensor_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the tensor on disk for one layer of our parameter of `shape`."""
        if self.in_axes is not None:
            inputs, outputs = shape[: self.in_axes], shape[self.in_axes :]
            shape = (math.prod(outputs), math.prod(inputs)) if inputs else (math.prod(outputs),)
        return (shape[0] * self.part[1], *shape[1:])

    def tensor_index(self, shape: tuple[int, ...], index: tuple[slice, ...]) -> tuple[slice, ...]:
        """Where the tensor on disk holds `index` (starts and stops) of our parameter of `shape`,
        for one layer.

        Raises ValueError when it is not one block there: of axes that are flattened together, only
        the first is divided.
        """
        if self.in_axes is not None:
            groups = [slice(self.in_axes, None), slice(self.in_axes)][: 1 + bool(self.in_axes)]
            index = tuple(_flat(index[group], shape[group]) for group in groups)
        first = self.part[0] * (self.tensor_shape(shape)[0] // self.part[1])
        return (slice(first + index[0].start, first + index[0].stop), *index[1:])

    def read(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Our parameter of `shape`, for one layer, out of the tensor on disk."""
        index, count = self.part
        size = tensor.shape[0] // count
        tensor = tensor[index * size : (index + 1) * size]
        return (tensor if self.in_axes is None else tensor.T).reshape(shape)

    def write(self, parameter: np.ndarray) -> np.ndarray:
        """The inverse of `read`: our parameter (or a block of it), for one layer, as (its part of)
        the tensor; a view where it is contiguous."""
        if self.in_axes is None:
            return parameter
        outputs = math.prod(parameter.shape[self.in_axes :])
        return parameter.reshape(-1, outputs).T if self.in_axes else parameter.reshape(outputs)


def _flat(index: tuple[slice, ...], shape: tuple[int, ...]) -> slice:
    """`index` of the axes of `shape` after they are flattened."""
    whole = tuple(slice(0, size) for size in shape[1:])
    if index[1:] != whole:
        raise ValueError(f"{index} of {shape}: only the first axis may be divided")
    first = index[0]
    return slice(*(at * math.prod(shape[1:]) for at in (first.start, first.stop)))


@dataclasses.dataclass(frozen=True)
class Family:
    """What tells the models of one `model_type` from others. Free of jax.

    model_type: in config.json, and `MLLMConfig.family`.
    config: (config.json, image processor or None) -> MLLMConfig; raises UserError.
    leaves: MLLMConfig -> every parameter of the model.
    processor: directory -> what makes patches of images (see `processor.ImageProcessor`), None
      for a text-only family.
    unused: (canonical name, MLLMConfig) -> whether the model computes without the tensor.
    """

    model_type: str
    config: Callable[[dict, Any], MLLMConfig]
    leaves: Callable[[MLLMConfig], Iterator[ParamSpec]]
    processor: Callable[[Path], Any]
    unused: Callable[[str, MLLMConfig], bool] = lambda name, config: False


@contextlib.contextmanager
def located(path: Path) -> Iterator[None]:
    """Puts the path of a config.json before UserErrors about its fields."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix('config.json: ')}") from None


def need(raw: dict, field: str) -> Any:
    """raw[field]. Raises UserError when it is missing or null."""
    if raw.get(field) is None:
        raise UserError(f"config.json: {field} is missing")
    return raw[field]


def only(raw: dict, field: str, supported: set, default: Any) -> None:
    """Raises UserError when raw[field] (or its default) is not supported."""
    if raw.get(field, default) not in supported:
        raise UserError(
            f"config.json: {field} {raw.get(field, default)!r} is not supported; "
            f"supported: {', '.join(map(repr, sorted(supported)))}"
        )


def rope_fields(raw: dict) -> dict:
    """Rope settings: transformers 5 says rope_parameters, older files rope_scaling."""
    return raw.get("rope_parameters") or raw.get("rope_scaling") or {}


# What `rope_type` may say of each kind of rope.
_ROPE_TYPES = {
    "1d": {"default", "llama3"},
    "mrope": {"default", "mrope"},
    "mrope_interleaved": {"default"},
}


def decoder_config(raw: dict, *, rope_kind: str, tied: bool | None, **fields: Any) -> DecoderConfig:
    """DecoderConfig of a text config; `fields` are what the family knows and the file does not say.

    Raises UserError for settings that are not supported and for fields that are missing.
    """
    rope = rope_fields(raw)
    only(rope, "rope_type", _ROPE_TYPES[rope_kind], rope.get("type", "default"))
    only(rope, "partial_rotary_factor", {1.0}, 1.0)
    only(raw, "hidden_act", {"silu"}, "silu")
    if raw.get("use_sliding_window") or "sliding_attention" in (raw.get("layer_types") or ()):
        raise UserError(
            "config.json: sliding-window attention (use_sliding_window) is not supported"
        )
    heads = need(raw, "num_attention_heads")
    return DecoderConfig(
        vocab_size=need(raw, "vocab_size"),
        hidden=need(raw, "hidden_size"),
        layers=need(raw, "num_hidden_layers"),
        heads=heads,
        kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or need(raw, "hidden_size") // heads,
        intermediate=need(raw, "intermediate_size"),
        rope_kind=rope_kind,
        rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 1e6))),
        rope_scaling=_rope_scaling(rope),
        norm_eps=float(raw.get("rms_norm_eps", 1e-5)),
        tied=bool(tied),
        **fields,
    )


def _rope_scaling(rope: dict) -> RopeScaling | None:
    if rope.get("rope_type", rope.get("type")) != "llama3":
        return None
    return RopeScaling(
        factor=float(need(rope, "factor")),
        low_freq_factor=float(need(rope, "low_freq_factor")),
        high_freq_factor=float(need(rope, "high_freq_factor")),
        original_length=need(rope, "original_max_position_embeddings"),
    )


def decoder_params(text: DecoderConfig) -> Iterator[ParamSpec]:
    """Every parameter of `Decoder(text)`."""
    layer = "text.layers.{}."
    yield ParamSpec("text.embed.embedding", "text.embed_tokens.weight")
    yield ParamSpec("text.norm.scale", "text.norm.weight")
    if not text.tied:
        yield ParamSpec("text.head.kernel", "lm_head.weight", 1)
    yield ParamSpec("text.layers.attn_norm.scale", layer + "input_layernorm.weight")
    yield ParamSpec("text.layers.mlp_norm.scale", layer + "post_attention_layernorm.weight")
    for ours in "qkv":
        yield from linear(f"text.layers.{ours}", f"{layer}self_attn.{ours}_proj", text.qkv_bias)
    yield from linear("text.layers.o", layer + "self_attn.o_proj", bias=False, in_axes=2)
    if text.qk_norm:
        for ours in "qk":
            yield ParamSpec(
                f"text.layers.{ours}_norm.scale", f"{layer}self_attn.{ours}_norm.weight"
            )
    for ours in ("gate", "up", "down"):
        yield from linear(f"text.layers.{ours}", f"{layer}mlp.{ours}_proj", bias=False)


def linear(
    ours: str, theirs: str, bias: bool = True, in_axes: int = 1, part: tuple[int, int] = (0, 1)
) -> Iterator[ParamSpec]:
    """The kernel and bias of a `Linear`."""
    yield ParamSpec(ours + ".kernel", theirs + ".weight", in_axes, part)
    if bias:
        yield ParamSpec(ours + ".bias", theirs + ".bias", 0, part)
