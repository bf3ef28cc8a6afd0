"""Weights that one stage leaves for the next, by parameter path, in orbax form."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
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


class Stored:
    """What `save` wrote as numpy arrays, one at a time, by parameter path (`text.norm.scale`).

    Raises:
      UserError: nothing is there, or it cannot be read.
    """

    def __init__(self, directory: Path):
        self.directory = directory.resolve()
        if not self.directory.is_dir():
            raise UserError(f"{directory}: no weights here; run the stage that trains them first")
        self._stored = self._checked(lambda: ocp.pytree_metadata(self.directory).metadata)
        if self._stored is None:
            raise self._damaged("arrays are missing")
        self._keys = {".".join(re.findall(r"\['(\w+)'\]", key)): key for key in self._stored}

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def read(self, path: str) -> np.ndarray:
        """The array of one path, all layers together."""
        if path not in self._keys:
            raise UserError(f"{self.directory}: {path} is missing; these are of another model")
        key = self._keys[path]
        # The target says only that numpy is wanted: its pages are never touched.
        target = np.empty(self._stored[key].shape, self._stored[key].dtype)
        targets = dict.fromkeys(self._stored, ocp.PLACEHOLDER) | {key: target}
        return self._checked(lambda: ocp.load_pytree(self.directory, targets))[key]

    def _checked(self, read):
        try:
            return read()
        except Exception as error:  # orbax raises whatever the damage leads to
            raise self._damaged(str(error).splitlines()[0]) from error

    def _damaged(self, reason: str) -> UserError:
        return UserError(
            f"{self.directory}: cannot be read ({reason}); run the stage that trains them again"
        )
