"""A run that starts fast, for tests that kill it: `run` in a process of its own."""

import time

import grain
import jax
import jax.numpy as jnp
import numpy as np

from mmsrec_jax.training import loop


def run(directory, steps, pause, pipe=None):
    """Trains a vector and leaves it in `directory`/w.npy; `pipe` is sent every step."""

    def draw(index, _):
        return np.random.default_rng(index).normal(size=4).astype(np.float32)

    @jax.jit
    def update(state, batch):
        gradient = state["w"] - batch
        moved = {"w": state["w"] - 0.1 * gradient, "step": state["step"] + 1}
        return moved, {"loss": jnp.mean(gradient**2)}

    def step(state, batch):
        if pipe is not None:
            pipe.send(int(state["step"]))
        time.sleep(pause)
        return update(state, batch)

    def evaluate(state, at):
        return state, {"validation": -abs(float(state["w"][0]))}, False

    source = grain.MapDataset.range(64).shuffle(seed=1).repeat().map_with_index(draw)
    state = loop.run(
        {"w": jnp.zeros(4), "step": jnp.int32(0)},
        step,
        iter(source.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))),
        name="killed",
        directory=directory,
        steps=steps,
        checkpoint_every=30,
        log_every=7,
        evaluate=evaluate,
        evaluate_every=100,
        best="validation",
    )
    np.save(directory / "w.npy", np.concatenate([state["w"], [state["step"]]]))
