"""Arrays between the hosts and their devices."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

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
