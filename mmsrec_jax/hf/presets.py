"""Shapes of published checkpoints, as far as their config.json says what is computed.

For planning: a program can be compiled for a model whose weights are not here. Sources: config.json
of Qwen/Qwen2.5-VL-{3B,7B,32B,72B}-Instruct and Qwen/Qwen3-VL-{4B,8B,32B}-Instruct; text-only
HuggingFaceTB/SmolLM2-135M-Instruct, Qwen/Qwen2.5-1.5B-Instruct, Qwen/Qwen3-{0.6B,1.7B} and
meta-llama/Llama-3.2-1B-Instruct.
"""

from typing import Any

from mmsrec_jax.hf import mapping
from mmsrec_jax.models.config import MLLMConfig
from mmsrec_jax.runtime.config_utils import choose_name

_TOKENS = {"image_token_id": 151655, "vision_start_token_id": 151652, "vision_end_token_id": 151653}


def _qwen2_5_vl(
    hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, *, vision_mlp: int, tied: bool
) -> dict:
    return {
        "model_type": "qwen2_5_vl",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "vocab_size": 151936 if tied else 152064,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": tied,
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "num_heads": 16,
            "intermediate_size": vision_mlp,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "window_size": 112,
            "patch_size": 14,
        },
        **_TOKENS,
    }


def _qwen3_vl(
    hidden: int, layers: int, heads: int, mlp: int, *, tied: bool, vision: tuple[int, int, int]
) -> dict:
    depth, vision_hidden, vision_mlp = vision
    return {
        "model_type": "qwen3_vl",
        "text_config": {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": mlp,
            "vocab_size": 151936,
            "rms_norm_eps": 1e-6,
            "rope_theta": 5e6,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20]},
        },
        "tie_word_embeddings": tied,
        "vision_config": {
            "depth": depth,
            "hidden_size": vision_hidden,
            "num_heads": 16,
            "intermediate_size": vision_mlp,
            "out_hidden_size": hidden,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [8, 16, 24] if depth == 27 else [5, 11, 17],
            "patch_size": 16,
        },
        **_TOKENS,
    }


def _text_only(
    model_type: str, hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, **fields: Any
) -> dict:
    """All of these have tied heads."""
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "tie_word_embeddings": True,
        **fields,
    }


_QWEN = {"vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 1e6}
_LLAMA_3_2 = {
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}

CONFIGS = {
    "qwen2.5-vl-3b": _qwen2_5_vl(2048, 36, 16, 2, 11008, vision_mlp=3420, tied=True),
    "qwen2.5-vl-7b": _qwen2_5_vl(3584, 28, 28, 4, 18944, vision_mlp=3420, tied=False),
    "qwen2.5-vl-32b": _qwen2_5_vl(5120, 64, 40, 8, 27648, vision_mlp=3456, tied=False),
    "qwen2.5-vl-72b": _qwen2_5_vl(8192, 80, 64, 8, 29568, vision_mlp=3456, tied=False),
    "qwen3-vl-4b": _qwen3_vl(2560, 36, 32, 9728, tied=True, vision=(24, 1024, 4096)),
    "qwen3-vl-8b": _qwen3_vl(4096, 36, 32, 12288, tied=False, vision=(27, 1152, 4304)),
    "qwen3-vl-32b": _qwen3_vl(5120, 64, 64, 25600, tied=False, vision=(27, 1152, 4304)),
    "smollm2-135m": _text_only(
        "llama", 576, 30, 9, 3, 1536, vocab_size=49152, rms_norm_eps=1e-5, rope_theta=1e5
    ),
    "llama-3.2-1b": _text_only("llama", 2048, 16, 32, 8, 8192, **_LLAMA_3_2),
    "qwen2.5-1.5b": _text_only("qwen2", 1536, 28, 12, 2, 8960, **_QWEN),
    "qwen3-0.6b": _text_only("qwen3", 1024, 28, 16, 8, 3072, head_dim=128, **_QWEN),
    "qwen3-1.7b": _text_only("qwen3", 2048, 28, 16, 8, 6144, head_dim=128, **_QWEN),
}


def config(name: str) -> MLLMConfig:
    """The model called so in `CONFIGS`. Raises UserError for another name."""
    return mapping.config_from_hf(CONFIGS[choose_name(name, CONFIGS, what="model")])
