"""Hugging Face directories of tiny text-only models with random weights."""

import json
from collections.abc import Iterable
from pathlib import Path

import tiny_mllm
from flax import nnx

from mmsrec_jax.hf import exporting, mapping, tokenizer
from mmsrec_jax.models.mllm import MLLM


def write(
    directory: Path, texts: Iterable[str], model_type: str = "llama", *, vocab_size: int = 400
) -> Path:
    """The directory, which is made: tokenizer, config.json and float32 weights."""
    shape = directory.with_name(directory.name + "-shape")
    tokens = tokenizer.train(texts, vocab_size, shape)
    raw = {
        "model_type": model_type, "vocab_size": len(tokens), "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": tokens.eos_token_id,
    }  # fmt: skip
    (shape / "config.json").write_text(json.dumps(raw))
    config = mapping.config_from_hf(raw)
    model = tiny_mllm.randomized(nnx.eval_shape(lambda: MLLM(config, rngs=nnx.Rngs(0))), seed=0)
    exporting.write_model(directory, exporting.of_model(model), shape, dtype="float32")
    return directory
