"""What Hugging Face calls things: config.json to MLLMConfig, tensor names to our stacked leaves.

`MODEL_TYPES` is the list of supported families; a family is a reader of its config and a table.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from mmsrec_jax.errors import UserError
from mmsrec_jax.models.config import DecoderConfig, MLLMConfig, VisionConfig
from mmsrec_jax.models.processor import ImageProcessor

MODEL_TYPES = ("qwen2_5_vl",)


@dataclasses.dataclass(frozen=True)
class Leaf:
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

    def read(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Our parameter of `shape`, for one layer, out of the tensor on disk."""
        index, count = self.part
        size = tensor.shape[0] // count
        tensor = tensor[index * size : (index + 1) * size]
        return (tensor if self.in_axes is None else tensor.T).reshape(shape)

    def write(self, parameter: np.ndarray) -> np.ndarray:
        """The inverse of `read`: our parameter, for one layer, as (its part of) the tensor."""
        if self.in_axes is None:
            return parameter
        outputs = math.prod(parameter.shape[self.in_axes :])
        return parameter.reshape(-1, outputs).T if self.in_axes else parameter.reshape(outputs)


def leaves(config: MLLMConfig) -> Iterator[Leaf]:
    """Every parameter of `MLLM(config)`."""
    text, layer = config.text, "text.layers.{}."
    yield Leaf("text.embed.embedding", "text.embed_tokens.weight")
    yield Leaf("text.norm.scale", "text.norm.weight")
    if not text.tied:
        yield Leaf("text.head.kernel", "lm_head.weight", 1)
    yield Leaf("text.layers.attn_norm.scale", layer + "input_layernorm.weight")
    yield Leaf("text.layers.mlp_norm.scale", layer + "post_attention_layernorm.weight")
    for ours in "qkv":
        yield from _linear(f"text.layers.{ours}", f"{layer}self_attn.{ours}_proj", text.qkv_bias)
    yield from _linear("text.layers.o", layer + "self_attn.o_proj", bias=False, in_axes=2)
    for ours in ("gate", "up", "down"):
        yield from _linear(f"text.layers.{ours}", f"{layer}mlp.{ours}_proj", bias=False)

    if config.vision is None:
        return
    block = "visual.blocks.{}."
    yield Leaf("vision.patch_embed.kernel", "visual.patch_embed.proj.weight")
    yield Leaf("vision.layers.attn_norm.scale", block + "norm1.weight")
    yield Leaf("vision.layers.mlp_norm.scale", block + "norm2.weight")
    for index, ours in enumerate("qkv"):
        yield from _linear(f"vision.layers.{ours}", block + "attn.qkv", part=(index, 3))
    yield from _linear("vision.layers.o", block + "attn.proj", in_axes=2)
    for ours in ("gate", "up", "down"):
        yield from _linear(f"vision.layers.{ours}", f"{block}mlp.{ours}_proj")
    yield Leaf("vision.merger.norm.scale", "visual.merger.ln_q.weight")
    yield from _linear("vision.merger.fc1", "visual.merger.mlp.0")
    yield from _linear("vision.merger.fc2", "visual.merger.mlp.2")


def _linear(
    ours: str, theirs: str, bias: bool = True, in_axes: int = 1, part: tuple[int, int] = (0, 1)
) -> Iterator[Leaf]:
    yield Leaf(ours + ".kernel", theirs + ".weight", in_axes, part)
    if bias:
        yield Leaf(ours + ".bias", theirs + ".bias", 0, part)


# Published Qwen2.5-VL has `visual.` and `model.`; transformers 5 in memory the first two.
_PREFIXES = (
    ("model.language_model.", "text."),
    ("model.visual.", "visual."),
    ("model.", "text."),
)


def canonical(name: str) -> str:
    """The name of a tensor on disk with the layout's prefix replaced by `text.` or `visual.`."""
    for prefix, ours in _PREFIXES:
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    return name


def module(name: str) -> str:
    """What transformers 5 calls in memory a tensor of canonical name, as peft's files do."""
    if name.startswith("text."):
        return "model.language_model." + name.removeprefix("text.")
    return name if name.startswith("lm_head.") else "model." + name


def ignored(name: str, config: MLLMConfig) -> bool:
    """Tensors in canonical name that carry nothing: rope buffers, the copy of a tied head."""
    return name.endswith("rotary_emb.inv_freq") or (config.text.tied and name == "lm_head.weight")


def config_from_hf(raw: dict, processor: ImageProcessor | None = None) -> MLLMConfig:
    """MLLMConfig of a `config.json`, nested (transformers 5) or flat (as published in 2025).

    `processor` gives the mean and standard deviation of pixels, CLIP's without. Raises UserError
    for model types and settings that are not supported and for fields that are missing.
    """
    kind = raw.get("model_type")
    if kind not in MODEL_TYPES:
        raise UserError(
            f"config.json: model_type {kind!r} is not supported; "
            f"supported: {', '.join(MODEL_TYPES)}"
        )
    nested = raw.get("text_config")
    text = raw if nested is None else nested
    return MLLMConfig(
        text=_text(text, tied=raw.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
        vision=_vision(_need(raw, "vision_config"), _need(text, "hidden_size"), processor),
        image_token_id=_need(raw, "image_token_id"),
        vision_start_token_id=_need(raw, "vision_start_token_id"),
        vision_end_token_id=_need(raw, "vision_end_token_id"),
    )


def _text(raw: dict, tied: bool | None) -> DecoderConfig:
    # transformers 5 says rope_parameters, older files rope_scaling beside rope_theta
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    _only(rope, "rope_type", {"default", "mrope"}, rope.get("type", "default"))
    _only(raw, "hidden_act", {"silu"}, "silu")
    if raw.get("use_sliding_window") or "sliding_attention" in (raw.get("layer_types") or ()):
        raise UserError(
            "config.json: sliding-window attention (use_sliding_window) is not supported"
        )
    heads = _need(raw, "num_attention_heads")
    return DecoderConfig(
        vocab_size=_need(raw, "vocab_size"),
        hidden=_need(raw, "hidden_size"),
        layers=_need(raw, "num_hidden_layers"),
        heads=heads,
        kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or _need(raw, "hidden_size") // heads,
        intermediate=_need(raw, "intermediate_size"),
        rope_kind="mrope",
        rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 1e6))),
        mrope_section=tuple(_need(rope, "mrope_section")),
        norm_eps=float(raw.get("rms_norm_eps", 1e-5)),
        qkv_bias=True,
        tied=bool(tied),
    )


def _vision(raw: dict, text_hidden: int, processor: ImageProcessor | None) -> VisionConfig:
    _only(raw, "hidden_act", {"silu"}, "silu")
    _only(raw, "in_channels", {3}, raw.get("in_chans", 3))
    _only(raw, "out_hidden_size", {text_hidden}, text_hidden)
    processor = processor or ImageProcessor()
    return VisionConfig(
        depth=_need(raw, "depth"),
        hidden=_need(raw, "hidden_size"),
        heads=_need(raw, "num_heads"),
        intermediate=_need(raw, "intermediate_size"),
        fullatt_block_indexes=tuple(_need(raw, "fullatt_block_indexes")),
        patch_size=raw.get("patch_size") or raw.get("spatial_patch_size", 14),
        merge=raw.get("spatial_merge_size", 2),
        temporal_patch_size=raw.get("temporal_patch_size", 2),
        window_size=_need(raw, "window_size"),
        # The tower divides pixels by 255; another rescale_factor goes into mean and deviation.
        image_mean=tuple(mean / (255 * processor.rescale) for mean in processor.mean),
        image_std=tuple(std / (255 * processor.rescale) for std in processor.std),
    )


def _need(raw: dict, field: str):
    if raw.get(field) is None:
        raise UserError(f"config.json: {field} is missing")
    return raw[field]


def _only(raw: dict, field: str, supported: set, default) -> None:
    if raw.get(field, default) not in supported:
        raise UserError(
            f"config.json: {field} {raw.get(field, default)!r} is not supported; "
            f"supported: {', '.join(map(repr, sorted(supported)))}"
        )
