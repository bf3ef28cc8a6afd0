"""Multimodal LLM recommenders in JAX.

The names below are the public face. They are imported on first use: `import mmsrec_jax` imports no
jax, so that input workers stay free of it. Everything else is reached by its folder.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mmsrec_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from mmsrec_jax.api._dataset import open_dataset
    from mmsrec_jax.api._embed import embed
    from mmsrec_jax.api._evaluate import evaluate
    from mmsrec_jax.api._generate import generate
    from mmsrec_jax.api._logits import logits
    from mmsrec_jax.api._recommend import Recommendation, recommend
    from mmsrec_jax.data.records import Dataset
    from mmsrec_jax.hf.loading import load

__version__ = "0.1.0"
__all__ = [
    "Dataset",
    "Recommendation",
    "UserError",
    "embed",
    "evaluate",
    "generate",
    "load",
    "logits",
    "open_dataset",
    "recommend",
]

_WHERE = {
    "Dataset": "mmsrec_jax.data.records",
    "Recommendation": "mmsrec_jax.api._recommend",
    "embed": "mmsrec_jax.api._embed",
    "evaluate": "mmsrec_jax.api._evaluate",
    "generate": "mmsrec_jax.api._generate",
    "load": "mmsrec_jax.hf.loading",
    "logits": "mmsrec_jax.api._logits",
    "open_dataset": "mmsrec_jax.api._dataset",
    "recommend": "mmsrec_jax.api._recommend",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
