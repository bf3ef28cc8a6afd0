"""A run's folder as a page reads it: what was asked for, and how far each step is.

`run.json` beside the steps says what no step says: the whole config of the last start, the steps it
has, and on which devices, by which versions and when each one ended.
"""

import datetime
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from mmsrec_jax.runtime import disk, files, processes, workdir
from mmsrec_jax.runtime.errors import UserError

FILE = "run.json"
DONE, PARTIAL, OUTDATED, WAITING = "done", "not finished", "to run again", "not begun"
_REMEDY = "run launch/train.py with this --workdir again, which writes it"


@dataclass(frozen=True)
class StepState:
    """How far a step is.

    Attributes:
      name: of the step and its folder.
      state: `DONE`, `PARTIAL` (stopped, or running), `OUTDATED` (a step that it read ran again
        since) or `WAITING`.
      seconds: how long it took since it was last started; None unless it is done.
      machine: see `machine`, and "ended", when; empty where nothing is known.
    """

    name: str
    state: str
    seconds: float | None
    machine: Mapping[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """What the folder of a run says of it.

    Attributes:
      path: the folder.
      config: every setting of the last start.
      steps: in the order in which they run.
    """

    path: Path
    config: Mapping[str, Any]
    steps: tuple[StepState, ...]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def headline(self) -> str:
        """The row of the table that the experiment is about."""
        method = str(self.config.get("method", ""))
        return str(self.config.get("sequential_model", "")) if method == "sequential" else method

    @property
    def seconds(self) -> float:
        """Of all steps that are done."""
        return sum(step.seconds or 0.0 for step in self.steps)

    @property
    def done(self) -> frozenset[str]:
        """Names of the steps that are done, by what there is now."""
        return frozenset(step.name for step in self.steps if step.state == DONE)


def machine() -> dict[str, Any]:
    """Versions and devices of this process's run, for `run.json`."""
    return {
        "mmsrec_jax": sys.modules["mmsrec_jax"].__version__,  # also where it is not installed
        "jax": jax.__version__,
        "python": platform.python_version(),
        "devices": jax.device_count(),
        "device": jax.devices()[0].device_kind,
        "processes": processes.count(),
    }


def begin(path: Path, config: Mapping[str, Any], steps: Sequence[str]) -> None:
    """Records a start in `run.json`; what it says of steps that the run still has stays."""
    known = _read(path, "delete it and run the same command again") if _exists(path) else {}
    kept = {name: told for name, told in known.get("machines", {}).items() if name in steps}
    files.write_json(path / FILE, {"config": config, "steps": list(steps), "machines": kept})


def ended(path: Path, step: str, found: Mapping[str, Any]) -> None:
    """Records that a step has ended, by the machine `found`."""
    record = _read(path, _REMEDY)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record["machines"][step] = {**found, "ended": now}
    files.write_json(path / FILE, record)


def read(path: Path) -> RunFolder:
    """What a folder says of its run.

    Raises:
      UserError: no run has begun there, or one of an earlier version; a record is damaged.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; name the --workdir of launch/train.py")
    if not _exists(path):
        workdir.check_is_run(path)
    record = _read(path, _REMEDY)
    records = workdir.records(path)
    steps, outdated = [], set[str]()
    for name in map(str, record["steps"]):
        own = records.get(name, {})
        state = _state(own, records, outdated)
        if state == OUTDATED:
            outdated.add(name)
        told = record["machines"].get(name, {}) if state in (DONE, OUTDATED) else {}
        seconds = own["seconds"] if state == DONE else None
        steps.append(StepState(name, state, seconds, told))
    return RunFolder(path, record["config"], tuple(steps))


def _read(path: Path, remedy: str) -> dict[str, Any]:
    """What `run.json` holds; raises UserError where it is damaged."""
    record = disk.read_json(path / FILE, remedy)
    for name, kind in (("config", dict), ("steps", list), ("machines", dict)):
        if not isinstance(record.get(name), kind):
            raise UserError(f"{path / FILE}: {name} is missing or damaged; {remedy}")
    if not all(isinstance(told, dict) for told in record["machines"].values()):
        raise UserError(f"{path / FILE}: machines is damaged; {remedy}")
    return record


def _exists(path: Path) -> bool:
    return (path / FILE).exists()


def _state(
    record: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]], outdated: set[str]
) -> str:
    if not record:
        return WAITING
    if not record["finished"]:
        return PARTIAL
    for name, fingerprint in record["inputs"].items():
        known = records.get(name, {})
        if name in outdated or not known.get("finished") or known["fingerprint"] != fingerprint:
            return OUTDATED
    return DONE
