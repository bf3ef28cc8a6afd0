"""Weights that one stage leaves for the next, by parameter path, in orbax form."""

from pathlib import Path
from typing import Any

import jax
from flax import nnx
from orbax.checkpoint import v1 as ocp

from mmsrec_jax.errors import UserError
from mmsrec_jax.training.checkpoints import flatten


def save(directory: Path, model: nnx.Module, kind: Any) -> None:
    """Writes the variables of `model` that the filter `kind` selects, atomically."""
    ocp.save_pytree(directory.resolve(), flatten(nnx.state(model, kind)), overwrite=True)


def restore(directory: Path, model: nnx.Module, kind: Any) -> None:
    """Reads what `save` wrote into `model`, in place and in the shardings it has.

    Raises:
      UserError: nothing is there, or it is of another model.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no weights here; run the stage that trains them first")
    state = nnx.state(model, kind)
    target = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in flatten(state).items()
    }
    try:
        loaded = ocp.load_pytree(directory.resolve(), target)
    except Exception as error:
        raise UserError(
            f"{directory}: not the weights of this model ({str(error).splitlines()[0]}); "
            "run the stage that trains them again"
        ) from error
    leaves = [loaded[name] for name in target]
    nnx.update(model, jax.tree.unflatten(jax.tree.structure(state), leaves))
