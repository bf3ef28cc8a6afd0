"""Hugging Face directories in and out: configs, weights, tokenizers, image processors."""
