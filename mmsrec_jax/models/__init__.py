"""Models. Public: `load` and `logits`; imported on use, so that input workers stay free of jax."""

__all__ = ["load", "logits"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mmsrec_jax.models import api

    return getattr(api, name)
