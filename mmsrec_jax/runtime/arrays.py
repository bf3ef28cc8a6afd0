"""Arrays between the hosts and their devices."""

import jax
import numpy as np
from jax.sharding import Mesh

from mmsrec_jax.runtime import sharding


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The rows of this process as rows of global arrays."""
    rows = sharding.batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(rows, value) for name, value in batch.items()
    }


def local_rows(array: jax.Array) -> np.ndarray:
    """The rows of a global array that this process gave, in order."""
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = {shard.index[0].start: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
