"""Checkpoints of a training loop: arrays and the position in the data, together or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from mmsrec_jax.errors import UserError


def flatten(tree: Any) -> dict[str, jax.Array]:
    """Leaves of any pytree by their path, the form in which they are stored."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


class Checkpoints:
    """Saves `(state, host)` at steps and restores the newest readable one.

    Writing is asynchronous and atomic (orbax). `state` is any pytree of arrays; `host` is
    anything JSON can hold (iterator state, counters).
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
        self.directory = Path(directory).resolve()
        self._orbax = ocp.training.Checkpointer(
            self.directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, state: Any, host: Any) -> None:
        """Starts to save; the arrays of `state` may be donated as soon as this returns."""
        text = np.frombuffer(json.dumps(host).encode(), np.uint8)
        self._orbax.save_checkpointables_async(
            step, {"state": flatten(state), "host": {"json": text}}, force=True, overwrite=True
        )

    def restore(self, state: Any) -> tuple[int, Any, Any] | None:
        """Newest readable checkpoint in the shape and sharding of `state`.

        Returns:
          `(step, state, host)`, or None if there is no checkpoint yet.

        Raises:
          UserError: checkpoints exist but none can be read, or their arrays are not those of
            `state`.
        """
        target = {name: _abstract(leaf) for name, leaf in flatten(state).items()}
        steps = sorted((c.step for c in self._orbax.checkpoints), reverse=True)
        for step in steps:
            try:
                loaded = self._orbax.load_checkpointables(step, {"state": target, "host": None})
            except Exception as error:
                logging.error(
                    "checkpoint %s cannot be read and is passed over: %s",
                    self.directory / str(step), str(error).splitlines()[0],
                )  # fmt: skip
                continue
            leaves = [loaded["state"][name] for name in target]
            host = json.loads(np.asarray(loaded["host"]["json"]).tobytes().decode())
            return step, jax.tree.unflatten(jax.tree.structure(state), leaves), host
        if steps:
            raise UserError(
                f"{self.directory}: none of the checkpoints {steps} can be read for this model; "
                "remove the directory to start this stage again"
            )
        return None

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._orbax.close()


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    leaf = jax.numpy.asarray(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
