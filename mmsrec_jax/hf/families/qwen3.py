"""Qwen3 (arXiv 2505.09388), the dense models, text only."""

from mmsrec_jax.hf.families import text

FAMILY = text.family("qwen3")
