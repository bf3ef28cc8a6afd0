"""The loop that all three trainers share: resume, step, log, checkpoint."""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from mmsrec_jax.metrics_log import MetricsLog
from mmsrec_jax.progress import Progress
from mmsrec_jax.training.checkpoints import Checkpoints
from mmsrec_jax.training.metering import Meter, Steps, Trace


class Batches(Protocol):
    """A Grain iterator: next batch, and an exact position that can be stored as JSON."""

    def __next__(self) -> Any: ...
    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


Step = Callable[[Any, Any], tuple[Any, Mapping[str, jax.Array]]]
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
    keep: int = 1,
    profile: Steps | None = None,
) -> Any:
    """Runs `steps` steps, or what is left of them after an interruption.

    Args:
      state: any pytree of arrays, at step 0.
      step_fn: `(state, batch) -> (state, metrics)`; it may donate `state`. Metrics are scalars
        and stay on the device until they are logged; `metering.amount` adds work to them.
      batches: iterator whose position is stored with every checkpoint.
      name: shown in progress lines.
      directory: gets `checkpoints/`, `metrics.jsonl` and `tensorboard/`.
      checkpoint_every, log_every: in steps. A line of metrics is the mean since the last one.
      evaluate: `(state, step) -> (state, metrics, stop)`, called every `evaluate_every` steps;
        it may keep what it needs (the best weights) inside `state`.
      keep: how many checkpoints stay on disk.
      profile: steps of which a trace is written, into `directory`/profile.

    Returns:
      The final state. A killed and resumed run returns the same bits as an unbroken one.
    """
    directory = Path(directory)
    with contextlib.closing(Checkpoints(directory / "checkpoints", keep=keep)) as checkpoints:
        start, stopped = 0, False
        restored = checkpoints.restore(state)
        if restored is not None:
            start, state, host = restored
            stopped = host["stopped"]
            batches.set_state(host["batches"])
        with (
            contextlib.closing(MetricsLog(directory, resume_step=start)) as log,
            contextlib.closing(Meter(name)) as meter,
            contextlib.closing(Trace(profile, directory / "profile")) as trace,
        ):
            progress = Progress(name, steps, start=start)
            window: list[Mapping[str, jax.Array]] = []
            for step in range(start + 1, steps + 1):
                if stopped:
                    break
                trace.before(step)
                state, metrics = step_fn(state, meter.next(batches))
                meter.ran(metrics)
                trace.after(step, metrics)
                window.append(metrics)
                means: dict[str, float] = {}
                at_checkpoint = step % checkpoint_every == 0 or step == steps
                if step % log_every == 0 or at_checkpoint:
                    means, window = _means(window), []
                    costs, shown = meter.window(means)
                    log.write(step, {**means, **costs})
                    means |= shown
                with meter.paused():
                    if evaluate is not None and step % evaluate_every == 0:
                        state, measured, stopped = evaluate(state, step)
                        log.write(step, measured)
                        means = {**means, **measured}
                    if at_checkpoint or stopped:
                        position = {"batches": batches.get_state(), "stopped": stopped}
                        checkpoints.save(step, state, position)
                progress.update(values=means)
    return state


def _means(window: list[Mapping[str, jax.Array]]) -> dict[str, float]:
    values = jax.device_get(window)
    return {name: float(np.mean([v[name] for v in values])) for name in values[0]}
