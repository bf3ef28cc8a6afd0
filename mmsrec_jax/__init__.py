"""Multimodal LLM recommenders in JAX.

What is named here is the public face, imported on use, so that input workers stay free of jax;
everything else is reached by its folder.
"""

from collections.abc import Callable

__version__ = "0.1.0"
__all__ = ["load", "logits"]


def __getattr__(name: str) -> Callable:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mmsrec_jax.hf import api

    return getattr(api, name)
