"""One forward pass over the rows of a source: an array for each row."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator

import grain
import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mmsrec_jax.inputs import pipeline
from mmsrec_jax.inputs.pipeline import Source
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.batch_tree import check_shapes
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import interruption, sharding
from mmsrec_jax.runtime.arrays import to_devices
from mmsrec_jax.runtime.progress import Progress

Compute = Callable[[MLLM, Batch], jax.Array]


def in_order(
    source: Source,
    mesh: Mesh,
    *,
    batch_size: int,
    length: int,
    patches: int,
    workers: int,
    answers: int = 0,
    targets: int | None = None,
    suffixes: bool = False,
    counts: Counter | None = None,
    section: str = "",
) -> grain.IterDataset:
    """Every row of `source` once, in order and without packing: this process's share of batches.

    Arguments are those of `inputs.pipeline.batches`.
    """
    shard, shards = sharding.process_batch_shard(mesh)
    return pipeline.batches(
        source,
        batch_size=batch_size,
        length=length,
        patches=patches,
        answers=answers,
        targets=targets,
        suffixes=suffixes,
        shuffle=False,
        repeat=False,
        pack=False,
        workers=workers,
        shard=shard,
        shards=shards,
        counts=counts,
        section=section,
    )


@functools.lru_cache(maxsize=8)
def compiled(
    graphdef: nnx.GraphDef, compute: Compute, mesh: Mesh
) -> Callable[[nnx.State, Batch], tuple[jax.Array, jax.Array]]:
    """`compute` as a jitted function (state, batch) -> (the rows' indices, what is computed), both
    on every device."""

    def run(state: nnx.State, batch: Batch) -> tuple[jax.Array, jax.Array]:
        check_shapes(batch, "index")
        assert batch.index is not None
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
      dataset: as from `in_order`; its `index` is negative for padding.
      compute: (model, batch) -> values [B, ...]; compiled once.
    """
    graphdef, state = nnx.split(model)
    run = compiled(graphdef, compute, mesh)
    state = jax.device_put(state, sharding.shardings(state, mesh))

    def real_rows(out: tuple[jax.Array, jax.Array]) -> tuple[np.ndarray, np.ndarray]:
        index, values = map(np.asarray, out)
        real = index >= 0
        progress.update(int(real.sum()))
        return index[real], values[real]

    iterator = iter(dataset)
    pending: tuple[jax.Array, jax.Array] | None = None
    try:
        for batch in iterator:
            interruption.stop_if_requested()
            # Not around the loop: a mesh that is set when a generator yields is its caller's too.
            with jax.set_mesh(mesh):
                out = run(state, to_devices(batch, mesh))
            # The devices have the next batch before the host waits for this one's values.
            if pending is not None:
                yield real_rows(pending)
            pending = out
        if pending is not None:
            yield real_rows(pending)
    finally:
        iterator.close()
