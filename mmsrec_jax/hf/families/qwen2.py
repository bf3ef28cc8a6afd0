"""Qwen2 (arXiv 2407.10671) and Qwen2.5 (arXiv 2412.15115), text only."""

from mmsrec_jax.hf.families import text

FAMILY = text.family("qwen2")
