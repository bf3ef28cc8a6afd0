"""Arrays between the hosts and their devices.

`to_devices` and `local_rows` are for rows of which each process has its own part, `put` and `fetch`
for values that every process has whole.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, Sharding

from mmsrec_jax.runtime import sharding


def to_devices(batch: Any, mesh: Mesh) -> Any:
    """A tree of arrays on the host -> the same tree on the devices: the rows of this process become
    rows of global arrays."""
    rows = sharding.batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(rows, x), batch)


def local_rows(array: jax.Array) -> np.ndarray:
    """The rows of a global array that this process gave, in order."""
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = {shard.index[0].start: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def put(tree: Any, where: Sharding | None) -> Any:
    """Host values, the same in every process, as arrays of this sharding.

    where: None is this process's default device.
    """
    if where is None or where.is_fully_addressable:
        return jax.device_put(tree, where)

    def one(value: Any) -> jax.Array:
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, where, lambda index: value[index])

    return jax.tree.map(one, tree)


def fetch(array: jax.Array) -> np.ndarray:
    """The whole of an array, in every process."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
