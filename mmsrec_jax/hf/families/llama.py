"""Llama 3 (arXiv 2407.21783) and what is built like it, such as SmolLM2 (arXiv 2502.02737)."""

from mmsrec_jax.hf.families import text

FAMILY = text.family("llama")
