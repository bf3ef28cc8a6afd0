"""Decoders by the `model_type` of their text config: fields of config.json and names of tensors.

Llama, Qwen2 and Qwen3 by themselves are text-only families; LLaVA and InternVL have such a decoder.
"""

from typing import Any

from mmsrec_jax.hf.families.base import Family, decoder_config, decoder_params, only
from mmsrec_jax.models.config import DecoderConfig, MLLMConfig
from mmsrec_jax.runtime.errors import UserError

_USUAL = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
          "rms_norm_eps": 1e-6, "rope_theta": 1e4}  # fmt: skip
_QWEN = _USUAL | {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32}
# What transformers assumes for fields that a file leaves out, as LLaVA-1.5's does.
_ASSUMED: dict[str, dict[str, Any]] = {
    "llama": _USUAL | {"vocab_size": 32000, "intermediate_size": 11008},
    "mistral": _USUAL | {"vocab_size": 32000, "intermediate_size": 14336, "num_key_value_heads": 8,
                         "sliding_window": 4096},
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
}  # fmt: skip


def decoder(kind: str, raw: dict, *, tied: bool | None) -> DecoderConfig:
    """DecoderConfig of the fields `raw` of a decoder whose `model_type` is `kind`.

    Raises UserError for settings that are not supported.
    """
    # A number of key and value heads that is null is that of the heads, whatever is assumed.
    own = {k: v for k, v in raw.items() if v is not None or k == "num_key_value_heads"}
    fields = _ASSUMED[kind] | own
    only(fields, "attention_bias", {False}, False)
    only(fields, "mlp_bias", {False}, False)
    if kind == "mistral" and raw.get("sliding_window", fields["sliding_window"]) is not None:
        raise UserError(
            "config.json: text_config.sliding_window is not supported; where no row is longer than "
            "the window, null describes the same model"
        )
    return decoder_config(
        fields, tied=tied, rope_kind="1d", qkv_bias=kind == "qwen2", qk_norm=kind == "qwen3"
    )


def family(model_type: str) -> Family:
    """The text-only family of a `model_type`: no vision tower, no image token, no processor."""

    def config(raw: dict, images: None) -> MLLMConfig:
        return MLLMConfig(
            text=decoder(model_type, raw, tied=raw.get("tie_word_embeddings")),
            vision=None,
            image_token_id=None,
            vision_start_token_id=None,
            vision_end_token_id=None,
            family=model_type,
        )

    return Family(
        model_type=model_type,
        config=config,
        leaves=lambda config: decoder_params(config.text),
        processor=lambda directory: None,
    )
