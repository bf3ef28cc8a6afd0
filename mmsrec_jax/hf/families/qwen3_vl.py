"""Qwen3-VL (arXiv 2511.21631), the dense models."""

import math
from collections.abc import Iterator

from mmsrec_jax.hf.families import qwen_vl
from mmsrec_jax.hf.families.base import Family, ParamSpec, need, only, rope_fields
from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.models.config import ACTIVATIONS, MLLMConfig, VisionConfig
from mmsrec_jax.runtime.errors import UserError

MERGER = {"norm": "norm", "fc1": "linear_fc1", "fc2": "linear_fc2"}
HALF = (0.5, 0.5, 0.5)


def _config(raw: dict, processor: ImageProcessor | None) -> MLLMConfig:
    def vision(fields: dict, text_hidden: int) -> VisionConfig:
        usual = ImageProcessor(patch_size=16, mean=HALF, std=HALF)
        return _vision(fields, text_hidden, processor or usual)

    text = need(raw, "text_config")
    only(text, "attention_bias", {False}, False)
    only(rope_fields(text), "mrope_interleaved", {True}, True)
    for field in ("head_dim", "rms_norm_eps"):  # the usual guesses are not this family's
        need(text, field)
    need(text | rope_fields(text), "rope_theta")
    config = qwen_vl.read_config(
        raw,
        FAMILY.model_type,
        vision,
        rope_kind="mrope_interleaved",
        qkv_bias=False,
        qk_norm=True,
    )
    assert isinstance(config.vision, VisionConfig), "Qwen-VL families have such a tower"
    if len(config.vision.deepstack_indexes) > config.text.layers:
        raise UserError(
            f"config.json: deepstack_visual_indexes has more entries than the decoder's "
            f"{config.text.layers} layers"
        )
    return config


def _vision(raw: dict, text_hidden: int, processor: ImageProcessor) -> VisionConfig:
    only(raw, "out_hidden_size", {text_hidden}, text_hidden)
    only(raw, "hidden_act", set(ACTIVATIONS), "gelu_pytorch_tanh")
    positions = need(raw, "num_position_embeddings")
    side = math.isqrt(positions)
    if side**2 != positions:
        raise UserError(f"config.json: num_position_embeddings {positions} is not a square")
    return VisionConfig(
        depth=need(raw, "depth"),
        hidden=need(raw, "hidden_size"),
        heads=need(raw, "num_heads"),
        intermediate=need(raw, "intermediate_size"),
        window_size=None,
        norm="layer",
        activation=raw.get("hidden_act", "gelu_pytorch_tanh"),
        gated=False,
        patch_bias=True,
        position_grid=side,
        deepstack_indexes=tuple(need(raw, "deepstack_visual_indexes")),
        **qwen_vl.patch_fields(raw, processor),
    )


def _leaves(config: MLLMConfig) -> Iterator[ParamSpec]:
    yield from qwen_vl.leaves(config, {"up": "linear_fc1", "down": "linear_fc2"}, MERGER)
    if config.vision is None:
        return
    yield ParamSpec("vision.positions.table", "visual.pos_embed.weight")
    assert isinstance(config.vision, VisionConfig), "Qwen-VL families have such a tower"
    if config.vision.deepstack_indexes:
        theirs = "visual.deepstack_merger_list.{}"
        yield from qwen_vl.merger_params("vision.deepstack", theirs, MERGER, bias=True)


FAMILY = Family(
    model_type="qwen3_vl",
    config=_config,
    leaves=_leaves,
    processor=ImageProcessor.from_pretrained,
)
