"""Weights that one step leaves for the next, by parameter path, in orbax form.

Beside the folder lies a file of the same name with `.json`: checksums of the arrays, layer by
layer, computed before they are written and compared after they are read (`runtime.checksums`); for
each type that they may be read in, since a model holds in bfloat16 what another trained in float32.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from flax import nnx
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from mmsrec_jax.runtime import checksums, disk, files, sharding
from mmsrec_jax.runtime.buckets.run import in_bucket
from mmsrec_jax.runtime.errors import UserError, first_line, root
from mmsrec_jax.training.checkpoints import flatten, writing

_READ_IN = ("float32", "bfloat16")
_CHUNK_BYTES = 64 * 2**20  # of what is read at a time


def save(directory: Path, model: nnx.Module, kind: Any) -> None:
    """Writes the variables of `model` that the filter `kind` selects, atomically.

    Stacked ones are stored layer by layer, so that `Stored` can read one without the others.
    """
    state = nnx.state(model, kind)
    stacked = _by_layer(state)
    by_layer = ocp.options.ArrayOptions.Saving.StorageOptions(
        chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,)
    )
    context = ocp.Context()
    context.array.saving.scoped_storage_options_creator = lambda key, _: (
        by_layer if key[0].key in stacked else None
    )
    arrays = flatten(state)
    sums = {name: _sums(array, name in stacked) for name, array in arrays.items()}
    with context, writing(directory, "weights"):
        ocp.save_pytree(in_bucket(directory.resolve()), arrays, overwrite=True)
    files.write_json(_checksums_file(directory), sums)


def _checksums_file(directory: Path) -> Path:
    return directory.with_name(directory.name + ".json")


def _by_layer(state: nnx.State) -> frozenset[str]:
    """Names of the stacked arrays."""
    stacked = flatten(jax.tree.map(_is_stacked, state, is_leaf=_is_variable))
    return frozenset(name for name, flag in stacked.items() if flag)


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _is_stacked(variable: nnx.Variable) -> nnx.Variable:
    """`variable` with a flag instead of its value: whether its first axis is that of the layers."""
    stacked = variable.get_metadata()["logical_axes"][:1] == ("layers",)
    return jax.tree.map(lambda _: stacked, variable)


def restore(directory: Path, model: nnx.Module, kind: Any, mesh: Mesh) -> None:
    """Reads what `save` wrote into `model`, in place and straight into shards on `mesh`.

    Raises:
      UserError: nothing is there, or it is damaged or of another model.
    """
    sums = _read_checksums(directory)
    state = nnx.state(model, kind)
    target = flatten(sharding.abstract(state, sharding.shardings(state, mesh)))
    try:
        loaded = ocp.load_pytree(in_bucket(directory.resolve()), target)
    except Exception as error:
        raise UserError(
            f"{directory}: cannot be read for this model ({first_line(root(error))}); "
            f"{_remedy(directory)}"
        ) from error
    stacked = _by_layer(state)
    for name in target:
        array = loaded[name]
        with disk.readable(_checksums_file(directory), _remedy(directory)):
            wanted = sums[name][str(array.dtype)]
        if checksums.of_array(array, by_row=name in stacked) != wanted:
            raise UserError(
                f"{directory}: damaged: the values of {name} are not those that were written; "
                f"{_remedy(directory)}"
            )
    leaves = [loaded[name] for name in target]
    nnx.update(model, jax.tree.unflatten(jax.tree.structure(state), leaves))


def _sums(array: jax.Array, stacked: bool) -> dict[str, list[int]]:
    """Checksums by the type that the array is read in."""
    types = _READ_IN if jnp.issubdtype(array.dtype, jnp.floating) else (str(array.dtype),)
    return {kind: checksums.of_array(array.astype(kind), by_row=stacked) for kind in types}


def _read_checksums(directory: Path) -> dict[str, dict[str, list[int]]]:
    """Those of the arrays in `directory`. Raises UserError when either is not there."""
    if not in_bucket(directory).is_dir():
        raise UserError(f"{directory}: no weights here; {_remedy(directory)}")
    return disk.read_json(_checksums_file(directory), _remedy(directory))


def _remedy(directory: Path) -> str:
    """A step that counts as finished would not run again by itself."""
    return f"delete {directory.parent} and run launch/train.py, which trains them"


class Stored:
    """What `save` wrote as numpy arrays, one at a time, by parameter path (`text.norm.scale`).

    Raises:
      UserError: nothing is there, or it cannot be read.
    """

    def __init__(self, directory: Path):
        self.directory = directory.resolve()
        self._sums = _read_checksums(self.directory)
        self._place = in_bucket(self.directory)
        self._stored = self._checked(lambda: ocp.pytree_metadata(self._place).metadata)
        if self._stored is None:
            raise self._damaged("arrays are missing")
        self._keys = {".".join(re.findall(r"\['(\w+)'\]", key)): key for key in self._stored}

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def read(self, path: str, layer: int | None = None) -> np.ndarray:
        """The array of one path: all layers together, or one of them, alone in memory."""
        if path not in self._keys:
            raise UserError(f"{self.directory}: {path} is missing; these are of another model")
        return self._checked(lambda: self._read(self._keys[path], layer))

    def _read(self, key: str, layer: int | None) -> np.ndarray:
        # Orbax reads arrays whole or by a device's shard, hence its store of them.
        root = next(self._place.glob("*/manifest.ocdbt")).parent
        store = {"driver": "ocdbt", "base": root.as_uri(), "path": f"{key}/"}
        array = tensorstore.open({"driver": "zarr3", "kvstore": store}, open=True).result()
        found = (array if layer is None else array[layer]).read().result()
        whole = self._sums[key][str(found.dtype)]
        wanted = whole if layer is None else [whole[layer]]
        if checksums.of_array(found, by_row=len(wanted) > 1) != wanted:
            raise ValueError(f"the values of {key} are not those that were written")
        return found

    def _checked(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except Exception as error:  # orbax raises whatever the damage leads to
            raise self._damaged(first_line(root(error))) from error

    def _damaged(self, reason: str) -> UserError:
        return UserError(f"{self.directory}: cannot be read ({reason}); {_remedy(self.directory)}")
