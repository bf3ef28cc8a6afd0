"""The loop that all three trainers share: resume, step, log, checkpoint, stop on SIGTERM."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from mmsrec_jax.runtime import interruption
from mmsrec_jax.runtime.buckets import run as buckets
from mmsrec_jax.runtime.config_utils import differences
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.metrics_log import MetricsLog
from mmsrec_jax.runtime.progress import Progress
from mmsrec_jax.training.checkpoints import Checkpoints
from mmsrec_jax.training.metering import Meter, Steps, Trace


class Batches(Iterator[Any], Protocol):
    """A Grain iterator: next batch, and an exact position that can be stored as JSON."""

    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


Step = Callable[[Any, Any], tuple[Any, Mapping[str, jax.Array | float]]]
Evaluate = Callable[[Any, int], tuple[Any, Mapping[str, float], bool]]


def run(
    state: Any,
    step_fn: Step,
    batches: Batches,
    *,
    name: str,
    directory: str | os.PathLike,
    steps: int,
    checkpoint_every: int,
    log_every: int,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 0,
    keep: int = 2,
    best: str | None = None,
    config: Mapping[str, Any] | None = None,
    profile: Steps | None = None,
) -> Any:
    """Runs `steps` steps, or what is left of them after an interruption.

    Args:
      state: any pytree of arrays, at step 0.
      step_fn: `(state, batch) -> (state, metrics)`; it may donate `state`. Metrics are scalars
        and stay on the device until they are logged; `metering.amount` adds work to them.
      batches: iterator whose position is stored with every checkpoint.
      name: shown in progress lines.
      directory: gets `checkpoints/`, `metrics.jsonl` and what its sinks keep beside it.
      checkpoint_every, log_every: in steps. A line of metrics is the mean since the last one.
      evaluate: `(state, step) -> (state, metrics, stop)`, called every `evaluate_every` steps
        and after the last one.
      keep: how many of the latest checkpoints stay on disk.
      best: a metric of `evaluate`, the higher the better; every validation leaves a checkpoint,
        and the best one stays.
      config: stored with every checkpoint.
      profile: steps of which a trace is written, into `directory`/profile.

    Returns:
      The final state, or the best one. A killed and resumed run returns the same bits as an
      unbroken one.

    Raises:
      UserError: the checkpoints are of another config, do not fit the batches, or cannot be read;
        the loss is not finite.
      Interrupted: SIGTERM came; the state after the last whole step is on disk.
    """
    directory = Path(directory)
    config = json.loads(json.dumps(config))
    with (
        interruption.deferred(),
        contextlib.closing(
            Checkpoints(directory / "checkpoints", keep=keep, best=best)
        ) as checkpoints,
    ):
        start, stopped = 0, False
        window: list[Mapping[str, float | jax.Array]] = []
        restored = checkpoints.restore(state)
        if restored is not None:
            start, state, host = restored
            if changed := differences(host["config"], config):
                raise UserError(
                    f"{directory}: the checkpoints are of another config ({'; '.join(changed)}); "
                    "go on with that one, or remove the directory"
                )
            stopped, window = host["stopped"], host["window"]
            _go_on(batches, host["batches"], directory / "checkpoints")
        with (
            MetricsLog(directory, resume_step=start) as log,
            contextlib.closing(Meter(name)) as meter,
            contextlib.closing(Trace(profile, directory / "profile")) as trace,
        ):
            progress = Progress(name, steps, start=start)
            for step in range(start + 1, steps + 1):
                if stopped:
                    break
                trace.before(step)
                state, metrics = step_fn(state, meter.next(batches))
                meter.ran(metrics)
                trace.after(step, metrics)
                window.append(metrics)
                means: dict[str, float] = {}
                measured: Mapping[str, float] | None = None
                due = step % checkpoint_every == 0 or step == steps
                if step % log_every == 0 or due:
                    means, window = _means(window), []
                    costs, shown = meter.window(means)
                    log.write(step, {**means, **costs})
                    means |= shown
                with meter.paused():
                    if evaluate is not None and (step % evaluate_every == 0 or step == steps):
                        state, measured, stopped = evaluate(state, step)
                        log.write(step, measured)
                        means = {**means, **measured}
                    interrupted = interruption.requested()
                    if due or stopped or interrupted or (best is not None and measured is not None):
                        window = list(_on_host(window))
                        host = {
                            "batches": batches.get_state(),
                            "stopped": stopped,
                            "window": window,
                            "config": config,
                        }
                        # Never a checkpoint without its metrics.
                        buckets.push(directory, at_once=True)
                        checkpoints.save(step, state, host, measured)
                progress.update(values=means)
                if interrupted:
                    raise interruption.Interrupted
        return state if best is None else checkpoints.restore_best(state)


def _go_on(batches: Batches, position: Any, checkpoints: Path) -> None:
    try:
        batches.set_state(position)
    except UserError as error:
        raise UserError(f"{checkpoints}: {error}") from None


def _on_host(window: Sequence[Mapping[str, float | jax.Array]]) -> list[dict[str, float]]:
    return [{name: float(v) for name, v in row.items()} for row in jax.device_get(window)]


def _means(window: Sequence[Mapping[str, float | jax.Array]]) -> dict[str, float]:
    rows = _on_host(window)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
