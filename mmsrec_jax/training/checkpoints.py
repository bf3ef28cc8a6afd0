"""Checkpoints of a training loop: arrays, position in the data and config, written atomically.

With them lie checksums of the arrays, computed before they are written and compared after they are
read (`runtime.checksums`): storage formats check their own lists of chunks and not what is in them.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from mmsrec_jax.runtime import checksums, processes
from mmsrec_jax.runtime.buckets.objects import is_url
from mmsrec_jax.runtime.buckets.run import in_bucket
from mmsrec_jax.runtime.errors import UserError, first_line, of_disguised, root

_SEAL_BYTES = hashlib.sha256().digest_size


def flatten(tree: Any) -> dict[str, jax.Array]:
    """Leaves of any pytree by their path, the form in which they are stored."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


@contextlib.contextmanager
def writing(directory: os.PathLike[str], what: str) -> Iterator[None]:
    """Errors of the block, which writes `what` to `directory`, become one line (UserError)."""
    try:
        yield
    except Exception as error:  # of orbax or tensorstore, whatever the disk's refusal leads to
        if refused := of_disguised(error):
            raise UserError(f"{directory}: {what} cannot be written: {refused}") from error
        place = "network and at your rights in the bucket" if is_url(directory) else "disk"
        raise UserError(
            f"{directory}: {what} cannot be written ({first_line(root(error))}); look at the "
            f"{place}, then the same command goes on from what was written before"
        ) from error


class Checkpoints:
    """Saves `(state, host)` at steps; restores the newest readable one, or the best.

    Writing is asynchronous and atomic (orbax). `state` is any pytree of arrays; `host` is
    anything JSON can hold (iterator state, config, counters). Arrays are restored in the shardings
    of the state they are for, on whatever mesh they were saved.

    Args:
      keep: how many of the latest stay; with more than one a damaged file costs some steps only.
      best: a metric, of those given to `save`; the checkpoint where it is highest stays as well,
        the first of several.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2, best: str | None = None):
        self.directory = in_bucket(Path(directory).resolve())
        self._best = best
        policies = ocp.training.preservation_policies
        highest = policies.BestN(
            get_metric_fn=self._rank,
            n=0 if best is None else 1,
            keep_checkpoints_without_metrics=False,
        )
        self._orbax = ocp.training.Checkpointer(
            self.directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), highest]),
            cleanup_tmp_directories=True,
        )

    def save(
        self, step: int, state: Any, host: Any, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Starts to save; the arrays of `state` may be donated as soon as this returns.

        metrics: where there was a validation.
        """
        arrays = flatten(state)
        measured = None if metrics is None else {**metrics, "step": step}
        told = {"host": host, "metrics": measured, "checksums": _sums(arrays)}
        text = json.dumps(told).encode()
        sealed = np.frombuffer(_seal(text) + text, np.uint8)
        with writing(self.directory, "a checkpoint"):
            self._orbax.save_checkpointables_async(
                step,
                {"state": arrays, "host": {"json": sealed}},
                force=True,
                overwrite=True,
                metrics=measured,
            )

    def restore(self, state: Any) -> tuple[int, Any, Any] | None:
        """Newest readable checkpoint in the shape and sharding of `state`.

        Returns:
          `(step, state, host)`, or None if there is no checkpoint yet.

        Raises:
          UserError: checkpoints exist but none can be read, or their arrays are not those of
            `state`.
        """
        steps = sorted((c.step for c in self._orbax.checkpoints), reverse=True)
        for step in steps:
            try:
                return step, *self._load(step, state)
            except _UnreadableError as error:
                logging.error(
                    "checkpoint %s cannot be read and is passed over: %s",
                    self.directory / str(step), error,
                )  # fmt: skip
        if steps:
            raise UserError(
                f"{self.directory}: none of the checkpoints {steps} can be read for this model; "
                "remove the directory to start this step again"
            )
        return None

    def restore_best(self, state: Any) -> Any:
        """The state where the metric `best` was highest.

        Raises:
          UserError: it cannot be read, or there has been no validation.
        """
        with writing(self.directory, "a checkpoint"):
            self._orbax.wait()
        try:
            at = f"{self.directory}, one of the checkpoints,"
            told = [self._checked(self._read, c.step, {})[1] for c in self._orbax.checkpoints]
            measured = [found["metrics"] for found in told if found["metrics"] is not None]
            if not measured:
                raise UserError(
                    f"{self.directory}: no checkpoint has {self._best}; nothing is best"
                )
            best = max(measured, key=self._rank)["step"]
            at = f"{self.directory / str(best)}, the best checkpoint,"
            return self._load(best, state)[0]
        except _UnreadableError as error:
            raise UserError(
                f"{at} cannot be read ({error}); remove {self.directory} to start this step again"
            ) from error

    def _rank(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        assert self._best is not None, "asked only where a metric is the best"
        return metrics[self._best], -metrics["step"]

    def _load(self, step: int, state: Any) -> tuple[Any, Any]:
        """State and host of one checkpoint; all processes or none can read it."""
        target = {name: _abstract(leaf) for name, leaf in flatten(state).items()}
        arrays, told = self._checked(self._read, step, target)
        self._checked(_compare, _sums(arrays), told["checksums"])
        leaves = [arrays[name] for name in target]
        return jax.tree.unflatten(jax.tree.structure(state), leaves), told["host"]

    def _checked(self, read: Callable[..., Any], *arguments: Any) -> Any:
        """What `read` returns, where it does so in every process; else _UnreadableError in all."""
        problem, found = "", None
        try:
            found = read(*arguments)
        except Exception as error:  # orbax raises whatever the damage leads to
            problem = first_line(root(error))
        problems = [other for other in processes.gather(problem) if other]
        if problems:
            raise _UnreadableError(problems[0])
        return found

    def _read(
        self, step: int, target: Mapping[str, jax.ShapeDtypeStruct]
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """The arrays of `target`, if there are any, and what was told beside them."""
        wanted: dict[str, Any] = {"host": None} | ({"state": dict(target)} if target else {})
        # Each process reads for itself: one that fails would leave the others waiting for it.
        context, process = ocp.Context(), jax.process_index()
        context.multiprocessing.primary_host = process
        context.multiprocessing.active_processes = {process}
        context.multiprocessing.barrier_sync_key_prefix = f"process{process}"
        with context:
            loaded = ocp.load_checkpointables(self.directory / str(step), wanted)
        sealed = np.asarray(loaded["host"]["json"]).tobytes()
        text = sealed[_SEAL_BYTES:]
        if _seal(text) != sealed[:_SEAL_BYTES]:
            raise ValueError("the position in the data is not what was written")
        return {name: loaded["state"][name] for name in target}, json.loads(text)

    def close(self) -> None:
        """Waits until everything is on disk."""
        with writing(self.directory, "a checkpoint"):
            self._orbax.close()


class _UnreadableError(Exception):
    """A checkpoint cannot be read, in this process or another; the message is one line."""


def _sums(arrays: Mapping[str, jax.Array]) -> dict[str, list[int]]:
    return {name: checksums.of_array(array) for name, array in arrays.items()}


def _compare(found: Mapping[str, list[int]], wanted: Mapping[str, list[int]]) -> None:
    for name, sums in found.items():
        if sums != wanted.get(name):
            raise ValueError(f"the values of {name} are not those that were written")


def _seal(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    leaf = jax.numpy.asarray(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
