"""One forward pass over the rows of a source: an array for each row."""

from collections.abc import Callable, Iterator

import grain
import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mmsrec_jax import sharding
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.progress import Progress

Compute = Callable[[MLLM, dict[str, jax.Array]], jax.Array]


def compiled(graphdef: nnx.GraphDef, compute: Compute):
    """`compute` as a jitted function of (state, batch)."""
    return jax.jit(lambda state, batch: compute(nnx.merge(graphdef, state), batch))


def per_row(
    model: MLLM,
    dataset: grain.IterDataset,
    compute: Compute,
    *,
    progress: Progress,
    mesh: Mesh,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(indices int[n], values [n, ...]) batch by batch, of the rows that are not padding.

    Args:
      dataset: `inputs.pipeline.batches` without packing; its `index` is negative for padding.
      compute: (model, batch) -> values [B, ...]; compiled once.
    """
    graphdef, state = nnx.split(model)
    run = compiled(graphdef, compute)
    rows = sharding.batch_sharding(mesh)
    with jax.set_mesh(mesh):
        state = jax.device_put(state, sharding.shardings(state, mesh))
        iterator = iter(dataset)
        try:
            for batch in iterator:
                index = batch.pop("index")
                real = index >= 0
                placed = {key: jax.device_put(value, rows) for key, value in batch.items()}
                yield index[real], np.asarray(run(state, placed))[real]
                progress.update(int(real.sum()))
        finally:
            iterator.close()
