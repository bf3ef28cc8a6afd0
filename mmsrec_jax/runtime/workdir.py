"""A run's folder: one sub-folder a step, finished steps are not run again.

Each step folder holds `step.json`: the config it ran with and the fingerprints of its inputs.
While the step runs the file says `"finished": false`; a killed step is taken up where it was.
"""

import dataclasses
import functools
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from mmsrec_jax.runtime import interruption, processes
from mmsrec_jax.runtime.config_utils import differences
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.files import write_json
from mmsrec_jax.runtime.progress import clock


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a method.

    Attributes:
      name: also the folder's name.
      run: called with the step's folder; everything it writes goes there.
      config: what the step depends on; a change here runs the step again.
      inputs: names of earlier steps whose outputs it reads.
      alone: it uses no devices: of several processes the main one runs it, and the others wait.
      then: called in every process once the step is finished, in this run or an earlier one, before
        the next one begins.
    """

    name: str
    run: Callable[[Path], None]
    config: Mapping[str, Any]
    inputs: Sequence[str] = ()
    alone: bool = False
    then: Callable[[], None] | None = None


def run_steps(workdir: Path, steps: Sequence[Step], only: Sequence[str] | None = None) -> None:
    """Runs `steps` in order, or those named in `only`.

    A step whose config and inputs are those it finished with is skipped. One whose config
    changed says which field, its old folder moves to `superseded/`, and it runs afresh.

    Raises:
      UserError: `only` names an unknown step, or one whose inputs are not finished.
    """
    names = [step.name for step in steps]
    for name in only or ():
        if name not in names:
            raise UserError(f"--steps: there is no step {name!r}; steps are {', '.join(names)}")
    fingerprints: dict[str, str] = {}
    for step in steps:
        directory = workdir / step.name
        missing = [name for name in step.inputs if name not in fingerprints]
        if only is not None and step.name not in only:
            record = processes.from_main(functools.partial(_read, directory))
            if record.get("finished"):
                fingerprints[step.name] = record["fingerprint"]
                if step.then is not None:
                    step.then()
            continue
        if missing:
            raise UserError(
                f"step {step.name} needs {', '.join(missing)}, not finished in {workdir}; "
                "run without --steps, or name them too"
            )
        fingerprints[step.name] = _run_step(
            directory, step, {name: fingerprints[name] for name in step.inputs}
        )
        if step.then is not None:
            step.then()


def share(workdir: Path) -> None:
    """Makes the folder, and sees to it that all processes mean the same one.

    Raises:
      UserError: they do not.
    """

    def mark() -> str:
        workdir.mkdir(parents=True, exist_ok=True)
        file, name = tempfile.mkstemp(prefix=".shared-", dir=workdir)
        os.close(file)
        return name

    name = Path(processes.from_main(mark))
    seen = processes.gather(name.exists())
    if processes.is_main():
        name.unlink()
    if not all(seen):
        raise UserError(
            f"--workdir={workdir}: process {seen.index(False)} does not see the main one's folder; "
            "give one on a disk that all machines share"
        )


def finished(workdir: Path, step: str, *, same: Sequence[str] = ()) -> dict[str, Any]:
    """The config that a finished step ran with.

    Raises:
      UserError: the step has not finished, or one of its inputs named in `same` ran again since.
    """
    record = _finished(workdir, step)
    for name in same:
        made_from = record["inputs"].get(name)
        if made_from is not None and made_from != _read(workdir / name).get("fingerprint"):
            raise UserError(
                f"{workdir}: step {name} has run again since step {step}; "
                "run launch/train.py with this --workdir"
            )
    return record["config"]


def fingerprint(workdir: Path, step: str) -> str:
    """Hash of the config of a finished step and of all that it read; raises as `finished`."""
    return _finished(workdir, step)["fingerprint"]


def inputs(workdir: Path, step: str) -> tuple[str, ...]:
    """Names of the steps whose outputs a finished step read; raises as `finished`."""
    return tuple(_finished(workdir, step)["inputs"])


def _finished(workdir: Path, step: str) -> dict[str, Any]:
    record = _read(workdir / step)
    if not record.get("finished"):
        raise UserError(
            f"{workdir}: step {step} has not finished; run launch/train.py with this --workdir"
        )
    return record


def _run_step(directory: Path, step: Step, inputs: dict[str, str]) -> str:
    interruption.stop_if_requested()
    record = processes.from_main(lambda: _begin(directory, step, inputs))
    if not record["finished"]:
        began = time.monotonic()
        if step.alone:
            processes.from_main(lambda: step.run(directory))
        else:
            step.run(directory)
        processes.barrier()
        if processes.is_main():
            seconds = time.monotonic() - began
            write_json(directory / "step.json", {**record, "finished": True, "seconds": seconds})
            logging.info("step %s is finished (%s)", step.name, clock(seconds))
    return record["fingerprint"]


def _begin(directory: Path, step: Step, inputs: dict[str, str]) -> dict[str, Any]:
    """The record of the step: finished with this config and these inputs, or about to run."""
    config = json.loads(json.dumps(step.config))  # tuples become lists, as in the stored form
    fingerprint = _hash({"step": step.name, "config": config, "inputs": inputs})
    record = _read(directory)
    if record and record["fingerprint"] != fingerprint:
        changed = differences(record["config"], config)
        read = {**record["inputs"], **inputs}
        changed += [k for k in read if record["inputs"].get(k) != inputs.get(k)]
        old = directory.parent / "superseded" / f"{step.name}-{record['fingerprint'][:12]}"
        old.parent.mkdir(exist_ok=True)
        serial = 0
        while old.exists():
            serial += 1
            old = old.with_name(f"{step.name}-{record['fingerprint'][:12]}.{serial}")
        directory.rename(old)
        logging.info(
            "step %s runs again, changed: %s (what was there is in %s)",
            step.name, "; ".join(changed), old,
        )  # fmt: skip
        record = {}
    if record.get("finished"):
        logging.info("step %s is finished (%s)", step.name, clock(record["seconds"]))
        return record
    (directory.parent / "table.json").unlink(missing_ok=True)  # no longer of this run
    directory.mkdir(parents=True, exist_ok=True)
    record = {"config": config, "inputs": inputs, "fingerprint": fingerprint, "finished": False}
    logging.info("step %s %s", step.name, "goes on" if _has_output(directory) else "begins")
    write_json(directory / "step.json", record)
    return record


def _read(directory: Path) -> dict[str, Any]:
    path = directory / "step.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _has_output(directory: Path) -> bool:
    return any(path.name != "step.json" for path in directory.iterdir())


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
