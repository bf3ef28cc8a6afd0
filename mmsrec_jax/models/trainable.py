"""What of a model is trained: its adapters, its connector, both, or every parameter.

The connector is what maps the features of the vision tower to the decoder's width. A tower says
which of its parts that is (`CONNECTOR`). What is trained is held in float32, which updates need;
what is frozen in the type of the computation.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmsrec_jax.models.mllm import MLLM, TOWERS
from mmsrec_jax.runtime.errors import UserError

KINDS = ("lora", "full", "connector", "connector+lora")

_CONNECTOR = {part for tower in TOWERS.values() for part in tower.CONNECTOR}


def _is_connector(path: tuple[Any, ...], _: Any) -> bool:
    return path[0] == "vision" and path[1] in _CONNECTOR


_FILTERS: dict[str, nnx.filterlib.Filter] = {
    "lora": nnx.LoRAParam,
    "full": nnx.Param,
    "connector": _is_connector,
}


def parts(kind: str) -> tuple[str, ...]:
    """ "lora", "full", "connector": what `kind`, one of `KINDS`, is made of.

    Raises:
      UserError: for another kind.
    """
    if kind not in KINDS:
        raise UserError(f"trainable={kind!r} is none of {KINDS}")
    return tuple(kind.split("+"))


def filter_of(kind: str) -> nnx.filterlib.Filter:
    """The filter of `nnx.split` and `nnx.state` for what is trained. Raises as `parts`."""
    return nnx.Any(*(_FILTERS[part] for part in parts(kind)))


def check(model: MLLM, kind: str) -> None:
    """Raises UserError when a part of `kind` is nothing in `model`; or as `parts`."""
    lacking = {
        "lora": "the model has no such weights; add them",
        "full": "the model has no weights",
        "connector": "the model has no vision tower, so no connector; train 'lora' or 'full'",
    }
    for part in parts(kind):
        if not jax.tree.leaves(nnx.state(model, _FILTERS[part])):
            raise UserError(f"trainable={kind!r}: {lacking[part]}")


def hold_in_float32(model: MLLM, kind: str) -> None:
    """Casts what is trained, in place; also while the model is traced for its shapes."""
    trained = nnx.state(model, filter_of(kind))
    nnx.update(model, jax.tree.map(lambda x: x.astype(jnp.float32), trained))
