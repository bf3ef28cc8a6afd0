"""A run's folder as a page reads it: what was asked for, and how far each step is.

`run.json` beside the steps says what no step says: the whole config of the last start, and the
steps it has. What a step took, and where, is in the record of the step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsrec_jax.runtime import disk, files, starts, workdir
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.starts import Start

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
      starts: of a step that is done or outdated, see `runtime.starts`; else empty.
      taken_from: the folder of the run that ran it; empty where this one did.
    """

    name: str
    state: str
    starts: tuple[Start, ...]
    taken_from: str

    @property
    def seconds(self) -> float | None:
        """How long all its starts took together; None unless it is done."""
        return starts.total(self.starts) if self.state == DONE else None

    @property
    def ended(self) -> str:
        """When, in UTC; empty where it has not."""
        return str(self.starts[-1].get("ended", "")) if self.starts else ""

    @property
    def device_hours(self) -> float | None:
        """Of all its starts; None unless it is done."""
        if self.state != DONE:
            return None
        return sum(start["seconds"] * start["devices"] for start in self.starts) / 3600


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


def begin(path: Path, config: Mapping[str, Any], steps: Sequence[str]) -> None:
    """Records a start in `run.json`."""
    files.write_json(path / FILE, {"config": config, "steps": list(steps)})


def is_newer(path: Path, page: Path) -> bool:
    """Whether a step of the run has begun, ended or been taken from another run since `page` was
    written, if it was."""
    if not page.exists():
        return True
    written = page.stat().st_mtime_ns
    return any(found.stat().st_mtime_ns > written for found in workdir.record_files(path))


def read(path: Path) -> RunFolder:
    """What a folder says of its run.

    Raises:
      UserError: no run has begun there, or one of an earlier version; a record is damaged.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; name the --workdir of launch/train.py")
    if not _exists(path):
        workdir.check_is_run(path)
    record = _read(path)
    records = workdir.records(path)
    steps, outdated = [], set[str]()
    for name in map(str, record["steps"]):
        own = records.get(name, {})
        state = _state(own, records, outdated)
        if state == OUTDATED:
            outdated.add(name)
        known = own["starts"] if state in (DONE, OUTDATED) else []
        ran_in = str(own.get("taken_from", ""))
        steps.append(StepState(name, state, tuple(known), ran_in))
    return RunFolder(path, record["config"], tuple(steps))


def _read(path: Path) -> dict[str, Any]:
    """What `run.json` holds; raises UserError where it is damaged."""
    record = disk.read_json(path / FILE, _REMEDY)
    for name, kind in (("config", dict), ("steps", list)):
        if not isinstance(record.get(name), kind):
            raise UserError(f"{path / FILE}: {name} is missing or damaged; {_REMEDY}")
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
