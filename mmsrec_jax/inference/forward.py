"""One forward pass over the rows of a source: an array for each row."""

import functools
from collections.abc import Callable, Iterator

import grain
import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.batch_tree import check_shapes
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import interruption, sharding
from mmsrec_jax.runtime.arrays import to_devices
from mmsrec_jax.runtime.progress import Progress

Compute = Callable[[MLLM, Batch], jax.Array]


@functools.lru_cache(maxsize=8)
def compiled(
    graphdef: nnx.GraphDef, compute: Compute, mesh: Mesh
) -> Callable[[nnx.State, Batch], tuple[jax.Array, jax.Array]]:
    """`compute` as a jitted function (state, batch) -> (the rows' indices, what is computed), both
    on every device."""

    def run(state: nnx.State, batch: Batch) -> tuple[jax.Array, jax.Array]:
        check_shapes(batch, "index")
        return batch.index, compute(nnx.merge(graphdef, state), batch)

    return jax.jit(run, out_shardings=sharding.replicated(mesh))


def per_row(
    model: MLLM,
    dataset: grain.IterDataset,
    compute: Compute,
    *,
    progress: Progress,
    mesh: Mesh,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(indices int[n], values [n, ...]) batch by batch, of the rows that are not padding.

    Every process gets the rows of all.

    Args:
      dataset: `inputs.pipeline.batches` without packing, this process's share of the rows; its
        `index` is negative for padding.
      compute: (model, batch) -> values [B, ...]; compiled once.
    """
    graphdef, state = nnx.split(model)
    run = compiled(graphdef, compute, mesh)
    with jax.set_mesh(mesh):
        state = jax.device_put(state, sharding.shardings(state, mesh))
        iterator = iter(dataset)
        try:
            for batch in iterator:
                interruption.stop_if_requested()
                index, values = map(np.asarray, run(state, to_devices(batch, mesh)))
                real = index >= 0
                yield index[real], values[real]
                progress.update(int(real.sum()))
        finally:
            iterator.close()
