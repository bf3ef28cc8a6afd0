"""A run with input workers, in a process group that a test signals.

python grouped.py DIRECTORY, with the environment that says which of several processes it is, if any
"""

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
from absl import app

from mmsrec_jax.inputs.example import Example

STEPS, ROWS = 30, 8


@dataclasses.dataclass
class Numbers:
    """Row i is the token i; making it takes `seconds`."""

    seconds: float = 0.0
    patch_width = 0

    def __len__(self):
        return 64

    def example(self, row, draw):
        time.sleep(self.seconds)
        token, weight = np.array([row], np.int32), np.ones(1, np.float32)
        return Example(token, weight, np.zeros(1, np.int32), np.zeros((3, 1), np.int32), index=row)


def run(directory, *, workers, seconds):
    """Trains one number on the order of all rows."""
    import jax  # here, for the workers import this file and need none of these

    from mmsrec_jax.inputs import pipeline
    from mmsrec_jax.inputs.sharded import Sharded
    from mmsrec_jax.runtime import sharding
    from mmsrec_jax.runtime.arrays import to_devices
    from mmsrec_jax.training import loop

    def make(shard, shards):
        return pipeline.batches(
            Numbers(seconds), batch_size=ROWS, length=1, workers=workers, shard=shard, shards=shards
        )

    mesh = sharding.make_mesh(data=1, fsdp=-1, tensor=1)
    update = jax.jit(lambda state, tokens: state * 31 + tokens.sum())

    def step(state, batch):
        state = update(state, to_devices(batch, mesh).tokens)
        return state, {"loss": state.astype(float)}

    iterator = iter(Sharded(make, 2, sharding.process_batch_shard(mesh)))
    start = jax.device_put(np.int32(1), sharding.replicated(mesh))
    try:
        return loop.run(
            start, step, iterator, name="grouped", directory=directory, steps=STEPS,
            checkpoint_every=STEPS, log_every=1,
        )  # fmt: skip
    finally:
        iterator.close()


def main(argv):
    from mmsrec_jax.runtime import interruption, processes

    processes.initialize()
    interruption.watch()
    try:
        run(Path(argv[1]), workers=2, seconds=0.2)
    except interruption.Interrupted:
        print("stopped", flush=True)


if __name__ == "__main__":
    app.run(main, argv=sys.argv)
