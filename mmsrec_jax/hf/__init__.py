"""Hugging Face directories: reading, writing, tokenizers, image processors."""
