"""Experiment trackers: W&B, MLflow and trackio behind one small interface.

Their packages are optional and imported where a tracker is opened. Each reads its own environment
variables (`WANDB_MODE`, `MLFLOW_TRACKING_URI`, `TRACKIO_DIR`, ...) and keeps what it stores where
it does without us.
"""

import contextlib
import dataclasses
import importlib.util
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mmsrec_jax.runtime.buckets.run import in_bucket
from mmsrec_jax.runtime.errors import UserError, first_line
from mmsrec_jax.runtime.settings import Section, setting

TENSORBOARD = "tensorboard"


@dataclasses.dataclass(frozen=True)
class TrackingSettings(Section):
    """Who gets the metrics of training steps beside `metrics.jsonl`. See docs/metrics.md."""

    sinks: tuple[str, ...] = setting(
        (TENSORBOARD,),
        "TensorBoard files, and trackers whose packages are installed.",
        choices=(TENSORBOARD, "wandb", "mlflow", "trackio"),
        recorded=False,
    )
    project: str = setting(
        "mmsrec_jax", "Project of the tracker; in MLflow, experiment.", recorded=False
    )


@dataclasses.dataclass(frozen=True)
class About:
    """What a tracker shows beside the metrics of one training step.

    Attributes:
      project: where the runs of several workdirs stand beside each other.
      group: the workdir; the training steps of one experiment share it.
      name: group and step, "runs/shop/sft".
      config: the experiment's settings, nested.
    """

    project: str
    group: str
    name: str
    config: Mapping[str, Any]


class Tracker(Protocol):
    """One run of a tracker.

    Attributes:
      run: its id, by which a later process goes on with it.
    """

    run: str

    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def close(self, *, failed: bool) -> None: ...


class WandB:
    """A run of W&B. The training step is a metric of its own, the axis of all others: W&B drops
    what comes at an earlier step of its own count than it has seen."""

    def __init__(self, about: About, run: str | None):
        import wandb

        self.run = run or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            project=about.project,
            id=self.run,
            name=about.name,
            group=about.group,
            config=dict(about.config),
            resume="allow",
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow:
    """A run of MLflow, whose experiment is the project. It allows no `@` in names: `hr@5` is
    `hr_at_5` there."""

    _PARAMS_AT_ONCE, _PARAM_LENGTH = 100, 500  # what a server accepts

    def __init__(self, about: About, run: str | None):
        from mlflow import MlflowClient

        self._client = MlflowClient()
        self.run = run or self._begin(about)
        self._client.update_run(self.run, status="RUNNING")

    def _begin(self, about: About) -> str:
        known = self._client.get_experiment_by_name(about.project)
        number = known.experiment_id if known else self._client.create_experiment(about.project)
        tags = {"group": about.group}
        run = self._client.create_run(number, run_name=about.name, tags=tags).info.run_id
        self._log_config(run, about.config)
        return run

    def _log_config(self, run: str, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(k, str(v)[: self._PARAM_LENGTH]) for k, v in _flat(config)]
        for start in range(0, len(params), self._PARAMS_AT_ONCE):
            self._client.log_batch(run, params=params[start : start + self._PARAMS_AT_ONCE])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(k.replace("@", "_at_"), v, now, step) for k, v in values.items()]
        self._client.log_batch(self.run, metrics=metrics)

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self.run, "FAILED" if failed else "FINISHED")


class Trackio:
    """A run of trackio, which is found again by its name."""

    def __init__(self, about: About, run: str | None):
        import trackio

        self.run = run or f"{about.name}-{uuid.uuid4().hex[:8]}"
        self._run = trackio.init(
            project=about.project,
            name=self.run,
            group=about.group,
            config=dict(about.config),
            resume="must" if run else "never",
            embed=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        import trackio

        trackio.finish()


KINDS: dict[str, Callable[[About, str | None], Tracker]] = {
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}
_REMEDIES = {
    "wandb": "run `wandb login`, or set WANDB_MODE=offline",
    "mlflow": "set MLFLOW_TRACKING_URI to the server or file that holds the run",
    "trackio": "set TRACKIO_DIR to the folder that holds the run",
}


def open_tracker(kind: str, about: About, run: str | None, record: Path) -> Tracker:
    """Begins a run of a tracker, or goes on with `run`, the id that `record` holds.

    Raises:
      UserError: the tracker refuses, or does not know the run.
    """
    try:
        return KINDS[kind](about, run)
    except Exception as error:  # each package raises errors of its own
        of = f" run {run} of {record}:" if run else ""
        remedies = [_REMEDIES[kind]] if kind in _REMEDIES else []
        remedies += [f"or delete {record}, then a new run begins"] if run else []
        raise UserError("; ".join([f"{kind}:{of} {first_line(error)}", *remedies])) from error


def check(sinks: Sequence[str]) -> None:
    """Stops before any training when a tracker could not be opened.

    Raises:
      UserError: its package is not installed; W&B has no key.
    """
    for kind in sinks:
        if kind in KINDS and importlib.util.find_spec(kind) is None:
            raise UserError(
                f"config.tracking.sinks={tuple(sinks)}: the package {kind} is not installed; run "
                f"pip install -e '.[{kind}]', or take {kind} out of the list"
            )
    if "wandb" in sinks and os.environ.get("WANDB_MODE", "online") == "online":
        import wandb

        if not wandb.api.api_key:
            raise UserError(
                f"config.tracking.sinks={tuple(sinks)}: W&B has no key; {_REMEDIES['wandb']}"
            )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Of which training steps are steps: its sinks, and what its trackers show.

    whole: the folder of all runs that the one in `workdir` is of.
    """

    sinks: tuple[str, ...] = (TENSORBOARD,)
    project: str = ""
    workdir: Path = Path()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    whole: Path = Path()

    def about(self, directory: Path) -> About:
        """Of the training step in a folder of the workdir."""
        below = len(self.workdir.relative_to(self.whole).parts)
        group = "/".join(in_bucket(self.workdir).parts[-max(below + 1, 2) :])
        step = Path(os.path.relpath(directory, self.workdir)).as_posix()
        return About(self.project, group, f"{group}/{step}", self.config)


_current = Experiment()


def current() -> Experiment:
    """What `tracked` says; TensorBoard alone outside of it."""
    return _current


@contextlib.contextmanager
def tracked(
    settings: TrackingSettings,
    workdir: Path,
    config: Mapping[str, Any],
    *,
    whole: Path | None = None,
) -> Iterator[None]:
    """Metrics logs that are opened in the block, in folders of `workdir`, go to `settings.sinks`.

    whole: the folder of several runs that `workdir` is in; None where it is the only one.
    """
    global _current
    before = _current
    _current = Experiment(settings.sinks, settings.project, workdir, config, whole or workdir)
    try:
        yield
    finally:
        _current = before


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
