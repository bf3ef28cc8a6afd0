"""A short training that is killed, and goes on when it is started again (`correct_training`).

The first start trains six steps, twice from the beginning, and prints digests of the weights; then
it trains three, saves them, trains a fourth and kills itself. The second start goes on from what is
saved and prints the digest after six steps.
"""

import hashlib
import json
import os
import signal
from pathlib import Path

import jax
import numpy as np

from benchmarks.accelerator import small_models
from benchmarks.accelerator.parts.correct_training import CONFIG, adapted
from mmsrec_jax.runtime import sharding
from mmsrec_jax.training import sft
from mmsrec_jax.training.checkpoints import Checkpoints
from mmsrec_jax.training.state import TrainState, place

STEPS, SAVED = 6, 3
SETTINGS = sft.FineTuneSettings(steps=100, warmup_steps=2, learning_rate=1e-3)


class Training:
    """Adapters of the small model in bfloat16; the batch of a step is a function of the step."""

    def __init__(self) -> None:
        optimizer, self._mesh = sft.make_optimizer(SETTINGS), sharding.make_mesh()
        graphdef, self.state, self._frozen, shardings = place(
            adapted("bfloat16"), "lora", optimizer, self._mesh
        )
        self._step = sft.make_step(
            graphdef, optimizer, yes_no_ids=(small_models.YES, small_models.NO),
            listwise_weight=0.5, shardings=shardings,
        )  # fmt: skip

    def run(self, state: TrainState, first: int, last: int) -> TrainState:
        """Steps first + 1 to last."""
        with jax.set_mesh(self._mesh):
            for step in range(first, last):
                batch = small_models.batch(CONFIG, 1, seed=step)
                state, _ = self._step(state, self._frozen, batch)
        return state


def digest(state: TrainState) -> str:
    """Of every bit of weights and moments."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def main(directory: Path) -> None:
    training, checkpoints = Training(), Checkpoints(directory / "checkpoints")
    found = checkpoints.restore(training.state)
    if found is None:
        digests = {}
        for name in ("straight", "again"):
            fresh = jax.tree.map(lambda x: x + 0, training.state)  # a step donates its state
            digests[name] = digest(training.run(fresh, 0, STEPS))
        print(json.dumps(digests), flush=True)
        state = training.run(training.state, 0, SAVED)
        checkpoints.save(SAVED, state, {})
        checkpoints.close()
        training.run(state, SAVED, SAVED + 1)
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        step, state, _ = found
        state = training.run(state, step, STEPS)
        total = sum(float(np.sum(np.abs(x))) for x in jax.tree.leaves(state.params))
        print(json.dumps({"resumed": digest(state), "sum": total}), flush=True)
