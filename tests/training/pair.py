"""One of two processes that save a checkpoint together, damage it, read it again, and share rows.

python pair.py DIRECTORY, with the environment that says which one it is
"""

import sys
from pathlib import Path

import grouped
import jax
import numpy as np
from flax import nnx

from mmsrec_jax.inference.forward import per_row
from mmsrec_jax.inputs import pipeline
from mmsrec_jax.runtime import arrays, processes
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.progress import Progress
from mmsrec_jax.runtime.sharding import batch_sharding, make_mesh, process_batch_shard
from mmsrec_jax.training.checkpoints import Checkpoints

directory = Path(sys.argv[1])
processes.initialize()
values = np.random.default_rng(0).normal(size=4096).astype(np.float32)
mesh = make_mesh()


def state(step):
    return {"w": arrays.put(values + step, batch_sharding(mesh))}


def restored():
    checkpoints = Checkpoints(directory / "checkpoints")
    try:
        step, found, host = checkpoints.restore(state(0))
        assert host == {"position": step}
        np.testing.assert_array_equal(arrays.fetch(found["w"]), values + step)
        return step
    finally:
        checkpoints.close()


def damage():
    """Cuts what the other process has written, which it alone reads."""
    (file,) = (directory / "checkpoints" / "2" / "state" / "ocdbt.process_1" / "d").iterdir()
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


checkpoints = Checkpoints(directory / "checkpoints")
for step in (1, 2):
    checkpoints.save(step, state(step), {"position": step})
checkpoints.close()
print("whole", restored(), flush=True)
processes.from_main(damage)
print("damaged", restored(), flush=True)


def refuse():
    raise UserError("the main process says no")


try:
    processes.from_main(refuse)
except UserError as error:
    print(error, processes.gather(jax.process_index()), flush=True)


class Rows(grouped.Numbers):
    """Keeps which rows were made here."""

    def __init__(self):
        super().__init__()
        self.made = []

    def example(self, row, draw):
        self.made.append(row)
        return super().example(row, draw)


source, (shard, shards) = Rows(), process_batch_shard(mesh)
dataset = pipeline.batches(
    source, batch_size=12, length=1, shuffle=False, repeat=False, pack=False, shard=shard,
    shards=shards,
)  # fmt: skip
scored = per_row(
    nnx.Dict(), dataset, lambda model, batch: 2 * batch.tokens, mesh=mesh,
    progress=Progress("rows", len(source)),
)  # fmt: skip
index, values = (np.concatenate(parts) for parts in zip(*scored, strict=True))
np.testing.assert_array_equal(values[:, 0], 2 * index)
made = sum(processes.gather(source.made), [])
print("scored", sorted(index.tolist()) == sorted(made) == list(range(len(source))), flush=True)
