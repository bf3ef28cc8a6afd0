"""A run's folder: one sub-folder a stage, finished stages are not run again.

Each stage folder holds `stage.json`: the config it ran with and the fingerprints of its inputs.
While the stage runs the file says `"finished": false`; a killed stage is taken up where it was.
"""

import dataclasses
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
class Stage:
    """One step of a method.

    Attributes:
      name: also the folder's name.
      run: called with the stage's folder; everything it writes goes there.
      config: what the stage depends on; a change here runs the stage again.
      inputs: names of earlier stages whose outputs it reads.
      alone: it uses no devices: of several processes the main one runs it, and the others wait.
    """

    name: str
    run: Callable[[Path], None]
    config: Mapping[str, Any]
    inputs: Sequence[str] = ()
    alone: bool = False


def run_stages(workdir: Path, stages: Sequence[Stage], only: Sequence[str] | None = None) -> None:
    """Runs `stages` in order, or those named in `only`.

    A stage whose config and inputs are those it finished with is skipped. One whose config
    changed says which field, its old folder moves to `superseded/`, and it runs afresh.

    Raises:
      UserError: `only` names an unknown stage, or one whose inputs are not finished.
    """
    names = [stage.name for stage in stages]
    for name in only or ():
        if name not in names:
            raise UserError(f"--stages: there is no stage {name!r}; stages are {', '.join(names)}")
    fingerprints: dict[str, str] = {}
    for stage in stages:
        directory = workdir / stage.name
        missing = [name for name in stage.inputs if name not in fingerprints]
        if only is not None and stage.name not in only:
            record = processes.from_main(lambda directory=directory: _read(directory))
            if record.get("finished"):
                fingerprints[stage.name] = record["fingerprint"]
            continue
        if missing:
            raise UserError(
                f"stage {stage.name} needs {', '.join(missing)}, not finished in {workdir}; "
                "run without --stages, or name them too"
            )
        fingerprints[stage.name] = _run_stage(
            directory, stage, {name: fingerprints[name] for name in stage.inputs}
        )


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


def finished(workdir: Path, stage: str, *, same: Sequence[str] = ()) -> dict[str, Any]:
    """The config that a finished stage ran with.

    Raises:
      UserError: the stage has not finished, or one of its inputs named in `same` ran again since.
    """
    record = _read(workdir / stage)
    if not record.get("finished"):
        raise UserError(
            f"{workdir}: stage {stage} has not finished; run launch/train.py with this --workdir"
        )
    for name in same:
        made_from = record["inputs"].get(name)
        if made_from is not None and made_from != _read(workdir / name).get("fingerprint"):
            raise UserError(
                f"{workdir}: stage {name} has run again since stage {stage}; "
                "run launch/train.py with this --workdir"
            )
    return record["config"]


def _run_stage(directory: Path, stage: Stage, inputs: dict[str, str]) -> str:
    interruption.stop_if_requested()
    record = processes.from_main(lambda: _begin(directory, stage, inputs))
    if not record["finished"]:
        began = time.monotonic()
        if stage.alone:
            processes.from_main(lambda: stage.run(directory))
        else:
            stage.run(directory)
        processes.barrier()
        if processes.is_main():
            seconds = time.monotonic() - began
            write_json(directory / "stage.json", {**record, "finished": True, "seconds": seconds})
            logging.info("stage %s is finished (%s)", stage.name, clock(seconds))
    return record["fingerprint"]


def _begin(directory: Path, stage: Stage, inputs: dict[str, str]) -> dict[str, Any]:
    """The record of the stage: finished with this config and these inputs, or about to run."""
    config = json.loads(json.dumps(stage.config))  # tuples become lists, as in the stored form
    fingerprint = _hash({"stage": stage.name, "config": config, "inputs": inputs})
    record = _read(directory)
    if record and record["fingerprint"] != fingerprint:
        changed = differences(record["config"], config)
        changed += [k for k in inputs if record["inputs"].get(k) != inputs[k]]
        old = directory.parent / "superseded" / f"{stage.name}-{record['fingerprint'][:12]}"
        old.parent.mkdir(exist_ok=True)
        serial = 0
        while old.exists():
            serial += 1
            old = old.with_name(f"{stage.name}-{record['fingerprint'][:12]}.{serial}")
        directory.rename(old)
        logging.info(
            "stage %s runs again, changed: %s (what was there is in %s)",
            stage.name, "; ".join(changed), old,
        )  # fmt: skip
        record = {}
    if record.get("finished"):
        logging.info("stage %s is finished (%s)", stage.name, clock(record["seconds"]))
        return record
    (directory.parent / "table.json").unlink(missing_ok=True)  # no longer of this run
    directory.mkdir(parents=True, exist_ok=True)
    record = {"config": config, "inputs": inputs, "fingerprint": fingerprint, "finished": False}
    logging.info("stage %s %s", stage.name, "goes on" if _has_output(directory) else "begins")
    write_json(directory / "stage.json", record)
    return record


def _read(directory: Path) -> dict[str, Any]:
    path = directory / "stage.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _has_output(directory: Path) -> bool:
    return any(path.name != "stage.json" for path in directory.iterdir())


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
