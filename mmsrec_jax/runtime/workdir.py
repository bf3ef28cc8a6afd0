"""A run's folder: one sub-folder a step, finished steps are not run again.

Each step folder holds `step.json`: the config it ran with and the fingerprints of its inputs.
While the step runs the file says `"finished": false`; a killed step is taken up where it was.
When it has ended it says too what the step left, with digests: a step, and every program that reads
the folder later, compares them before it reads. How long it took and on which machines stands there
as well, and from which run it was taken; that decides nothing.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from mmsrec_jax.runtime import digests, disk, files, interruption, processes, progress, starts
from mmsrec_jax.runtime.buckets import run as buckets
from mmsrec_jax.runtime.buckets.copies import SUPERSEDED
from mmsrec_jax.runtime.config_utils import differences
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.progress import clock
from mmsrec_jax.runtime.remaining import Timed, WholeRun

_RECORD = "step.json"
# Folder -> its fingerprint and stamps when this process last found it sound.
_verified: dict[Path, tuple[str, dict[str, tuple[int, int]]]] = {}


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
      shown: names of files in its folder of which the workdir holds a copy, as long as the step is
        finished.
    """

    name: str
    run: Callable[[Path], None]
    config: Mapping[str, Any]
    inputs: Sequence[str] = ()
    alone: bool = False
    then: Callable[[], None] | None = None
    shown: Sequence[str] = ()


def run_steps(
    workdir: Path,
    steps: Sequence[Step],
    only: Sequence[str] | None = None,
    *,
    after: Callable[[str], None] | None = None,
    reuse: Sequence[Path] = (),
) -> None:
    """Runs `steps` in order, or those named in `only`.

    A step whose config and inputs are those it finished with is skipped. One whose config
    changed says which field, its old folder moves to `superseded/`, and it runs afresh.

    after: called in the main process with the name of each step that has run. reuse: folders of
    other runs; a step that finished there with the same config and inputs is taken from the first
    of them, by hard links, and does not run.

    Raises:
      UserError: `only` names an unknown step, or one whose inputs are not finished; what a step
        reads is no longer what an earlier one left.
    """
    check_names(steps, only)
    configs = {step.name: json.loads(json.dumps(step.config)) for step in steps}
    to_run = processes.from_main(lambda: unfinished(workdir, steps, only, reuse))
    known = processes.from_main(lambda: _known_times(workdir, list(configs), reuse))
    whole = WholeRun(configs, to_run, [Timed(*one) for one in known])
    with progress.listening(whole.progressed):
        _run_all(workdir, steps, only, after=after, reuse=reuse, whole=whole)


def _run_all(
    workdir: Path,
    steps: Sequence[Step],
    only: Sequence[str] | None,
    *,
    after: Callable[[str], None] | None,
    reuse: Sequence[Path],
    whole: WholeRun,
) -> None:
    fingerprints: dict[str, str] = {}
    for step in steps:
        directory = workdir / step.name
        missing = [name for name in step.inputs if name not in fingerprints]
        if only is not None and step.name not in only:
            record = processes.from_main(functools.partial(_read, directory))
            if record.get("finished"):
                fingerprints[step.name] = record["fingerprint"]
                _follow(step, directory)
            continue
        if missing:
            raise UserError(
                f"step {step.name} needs {', '.join(missing)}, not finished in {workdir}; "
                "run without --steps, or name them too"
            )
        fingerprints[step.name] = _run_step(
            directory,
            step,
            {name: fingerprints[name] for name in step.inputs},
            shown=[name for other in steps for name in other.shown],
            after=after,
            reuse=reuse,
            whole=whole,
        )
        _follow(step, directory)


def _follow(step: Step, directory: Path) -> None:
    """What comes after a finished step and reads what it left."""
    if step.then is not None:
        processes.from_main(lambda: _verify(directory, _read(directory)))
        step.then()


def check_names(steps: Sequence[Step], only: Sequence[str] | None) -> None:
    """Raises UserError when `only` names an unknown step."""
    names = dict.fromkeys(step.name for step in steps)
    for name in only or ():
        if name not in names:
            raise UserError(f"--steps: there is no step {name!r}; steps are {', '.join(names)}")


def unfinished(
    workdir: Path,
    steps: Sequence[Step],
    only: Sequence[str] | None = None,
    reuse: Sequence[Path] = (),
) -> list[str]:
    """Names of the steps that `run_steps` would run."""
    fingerprints: dict[str, str] = {}
    found = []
    for step in steps:
        config = json.loads(json.dumps(step.config))
        inputs = {name: fingerprints.get(name, "") for name in step.inputs}
        fingerprints[step.name] = _fingerprint(step.name, config, inputs)
        if only is not None and step.name not in only:
            continue
        own = _read(workdir / step.name)
        begun = own.get("fingerprint") == fingerprints[step.name] and not own.get("arriving")
        if begun:  # it goes on here
            is_done = own["finished"]
        else:
            is_done = _same(reuse, step.name, fingerprints[step.name]) is not None
        if not is_done:
            found.append(step.name)
    return found


def _known_times(
    workdir: Path, steps: Sequence[str], reuse: Sequence[Path]
) -> list[tuple[str, Any, float]]:
    """Name, config and seconds of every finished step that tells how long `steps` take: in this
    run, in its earlier forms, the newest first, and in other runs."""
    old = (workdir / SUPERSEDED).glob("*")
    folders = {workdir / name: name for name in steps}
    for folder in sorted(old, key=lambda path: path.stat().st_mtime, reverse=True):
        folders[folder] = folder.name.rpartition("-")[0]
    folders |= {other / name: name for other in reuse for name in steps}
    found = []
    for folder, name in folders.items():
        with contextlib.suppress(UserError):  # of another version: it tells nothing
            record = _read(folder, name) if name in steps else {}
            if record.get("finished") and not record.get("resumed"):
                found.append((name, record["config"], starts.total(record["starts"])))
    return found


def share(workdir: Path) -> None:
    """Makes the folder, and sees to it that all processes mean the same one. Machines have copies
    of their own of a workdir in a bucket.

    Raises:
      UserError: they do not.
    """

    if buckets.is_copy(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        return

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
      UserError: the step has not finished, or one of its inputs named in `same` ran again since;
        the files of one of them are not those that it left.
    """
    record = _finished(workdir, step)
    for name in same:
        made_from = record["inputs"].get(name)
        if made_from is None:
            continue
        if made_from != _read(workdir / name).get("fingerprint"):
            raise UserError(
                f"{workdir}: step {name} has run again since step {step}; "
                "run launch/train.py with this --workdir"
            )
        _finished(workdir, name)
    return record["config"]


def fingerprint(workdir: Path, step: str) -> str:
    """Hash of the config of a finished step and of all that it read; raises as `finished`."""
    return _finished(workdir, step)["fingerprint"]


def inputs(workdir: Path, step: str) -> tuple[str, ...]:
    """Names of the steps whose outputs a finished step read; raises as `finished`."""
    return tuple(_finished(workdir, step)["inputs"])


def records(workdir: Path) -> dict[str, dict[str, Any]]:
    """Name -> record of every step that has begun in a folder, in no order of meaning. What the
    steps left is not compared with its digests.

    Raises:
      UserError: a record is damaged, or of another version.
    """
    return {path.parent.name: _read(path.parent) for path in record_files(workdir)}


def record_files(workdir: Path) -> list[Path]:
    """The files of `records`."""
    return sorted(workdir.glob(f"*/{_RECORD}"))


def runs_in(folder: Path) -> list[str]:
    """Names of the folders of runs in a folder that is none itself, as of several seeds or of both
    methods, such as mmsrarec/seed-0, sorted; at most two levels down."""
    found = [
        path.relative_to(folder).parents[1]
        for levels in ("*/*", "*/*/*")
        for path in folder.glob(f"{levels}/{_RECORD}")
    ]
    return sorted({str(run) for run in found if SUPERSEDED not in run.parts})


def check_is_run(workdir: Path) -> None:
    """Raises UserError when there are runs in sub-folders of a workdir, which is none itself."""
    if not records(workdir) and (runs := runs_in(workdir)):
        raise UserError(
            f"{workdir}: has runs in {', '.join(runs)}; name one of these folders, such as "
            f"{workdir / runs[0]}"
        )


def _finished(workdir: Path, step: str) -> dict[str, Any]:
    record = _read(workdir / step)
    if not record.get("finished"):
        check_is_run(workdir)
        raise UserError(
            f"{workdir}: step {step} has not finished; run launch/train.py with this --workdir"
        )
    _verify(workdir / step, record)
    return record


def _run_step(
    directory: Path,
    step: Step,
    inputs: dict[str, str],
    *,
    shown: Sequence[str],
    after: Callable[[str], None] | None,
    reuse: Sequence[Path],
    whole: WholeRun,
) -> str:
    interruption.stop_if_requested()
    record = processes.from_main(lambda: _begin(directory, step, inputs, shown, reuse))
    if reuse or not record["finished"]:
        buckets.pull(directory)
    if not record["finished"]:
        began = time.monotonic()
        whole.begin(step.name, resumed=record["resumed"])
        if step.alone:
            processes.from_main(lambda: _work(directory, step))
        else:
            _work(directory, step)
        processes.barrier()
        whole.end(step.name)
        processes.from_main(lambda: _end(directory, step, record, time.monotonic() - began))
        buckets.pull(directory)
        if after is not None and processes.is_main():
            after(step.name)
    return record["fingerprint"]


def _work(directory: Path, step: Step) -> None:
    with disk.named(directory):
        step.run(directory)


def _begin(
    directory: Path,
    step: Step,
    inputs: dict[str, str],
    shown: Sequence[str],
    reuse: Sequence[Path],
) -> dict[str, Any]:
    """The record of the step: finished with this config and these inputs, or about to run."""
    config = json.loads(json.dumps(step.config))  # tuples become lists, as in the stored form
    fingerprint = _fingerprint(step.name, config, inputs)
    record = _read(directory)
    if record.get("arriving"):
        buckets.remove_folder(directory)
        record = {}
    if record and record["fingerprint"] != fingerprint:
        changed = differences(record["config"], config)
        read = {**record["inputs"], **inputs}
        changed += [k for k in read if record["inputs"].get(k) != inputs.get(k)]
        old = directory.parent / SUPERSEDED / f"{step.name}-{record['fingerprint'][:12]}"
        old.parent.mkdir(exist_ok=True)
        serial = 0
        while not buckets.is_free(old):
            serial += 1
            old = old.with_name(f"{step.name}-{record['fingerprint'][:12]}.{serial}")
        for name in shown:
            buckets.remove(directory.parent / name)  # no longer of this run
        buckets.move(directory, old)
        logging.info(
            "step %s runs again, changed: %s (what was there is in %s)",
            step.name, "; ".join(changed), old,
        )  # fmt: skip
        record = {}
    if not record and (source := _same(reuse, step.name, fingerprint)):
        _take(source, directory)
        record = _read(directory)
        logging.info("step %s is taken from %s", step.name, source.parent)
    if record.get("finished"):
        took = clock(starts.total(record["starts"]))
        logging.info("step %s is finished (%s)", step.name, took)
        _show(directory, step)
        return record
    for name in _all_inputs(directory.parent, step.inputs):
        _verify(directory.parent / name, _read(directory.parent / name))
    directory.mkdir(parents=True, exist_ok=True)
    resumed = _has_output(directory)
    earlier = record["starts"] if record else []
    record = {"config": config, "inputs": inputs, "fingerprint": fingerprint, "finished": False}
    record["resumed"] = resumed  # its seconds are then not those of a step that runs through
    record["starts"] = starts.with_another(earlier, directory / _RECORD)
    logging.info("step %s %s", step.name, "goes on" if resumed else "begins")
    files.write_json(directory / _RECORD, record)
    buckets.push(directory)
    return record


def _end(directory: Path, step: Step, record: Mapping[str, Any], seconds: float) -> None:
    """Records that the step has finished, when all it wrote is on the disk itself."""
    disk.sync_tree(directory)
    ended = {"finished": True, "starts": starts.with_end(record["starts"], seconds)}
    ended["outputs"] = digests.outputs(directory)
    files.write_json(directory / _RECORD, {**record, **ended})
    _verified[directory] = (record["fingerprint"], digests.stamps(directory))
    buckets.push(directory)
    _show(directory, step, again=True)
    logging.info("step %s is finished (%s)", step.name, clock(seconds))


def _same(reuse: Sequence[Path], step: str, fingerprint: str) -> Path | None:
    """The folder of the first other run's step that is finished and has this fingerprint."""
    for folder in reuse:
        record = _read(folder / step)
        if not record.get("finished") or record["fingerprint"] != fingerprint:
            continue
        if problem := _problem(folder / step, record):
            logging.warning("%s, so step %s is not taken from there", problem, step)
            continue
        return folder / step
    return None


def _take(source: Path, directory: Path) -> None:
    """Links what a finished step left into the folder of a step that has not begun. No program
    changes such a file in place."""
    if buckets.is_copy(directory):  # whose files arrive one by one: what they are, if not all do
        directory.mkdir(parents=True, exist_ok=True)
        record = {**_read(source), "finished": False, "arriving": True}
        files.write_json(directory / _RECORD, record)
        buckets.push(directory)
    with disk.arriving(directory, replaces=buckets.is_copy(directory)) as partial:
        shutil.copytree(
            source,
            partial,
            ignore=lambda _, names: [name for name in names if digests.is_needless(name)],
            copy_function=_link,
            dirs_exist_ok=True,
        )
        record = _read(source)
        ran_in = record.get("taken_from") or str(buckets.in_bucket(source.parent))
        files.write_json(partial / _RECORD, {**record, "taken_from": ran_in})
        buckets.take_arrays(source, directory, partial)
    buckets.push(directory, at_once=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # of another disk, or of one without links
        shutil.copy2(source, target)


def _show(directory: Path, step: Step, *, again: bool = False) -> None:
    """Copies the files that the workdir shows, `again` or those that are missing there."""
    for name in step.shown:
        source, target = directory / name, directory.parent / name
        if source.is_file() and (again or not target.exists()):
            files.write_bytes(target, source.read_bytes())


def _all_inputs(workdir: Path, steps: Sequence[str]) -> list[str]:
    """`steps`, the steps that these read, and so on: a step may read through one what that read."""
    found: list[str] = []
    for step in steps:
        own = [*_all_inputs(workdir, list(_read(workdir / step).get("inputs", ()))), step]
        found += [name for name in own if name not in found]
    return found


def _verify(directory: Path, record: Mapping[str, Any]) -> None:
    """Raises UserError when the files of a finished step are not those that it left."""
    if problem := _problem(directory, record):
        raise UserError(
            f"{problem}, though step {directory.name} is finished: it was damaged or changed "
            f"since; put it back, or delete {directory} and run launch/train.py to make it again"
        )


def _problem(directory: Path, record: Mapping[str, Any]) -> str:
    """How the files of a finished step differ from those that it left; empty where they do not."""
    known = (record["fingerprint"], digests.stamps(directory))
    if _verified.get(directory) == known:
        return ""
    problem = digests.difference(directory, record["outputs"])
    if not problem:
        _verified[directory] = known
    return problem


def _read(directory: Path, step: str = "") -> dict[str, Any]:
    """The record of a step; empty where there is none. step: its name, the folder's if empty.

    Raises:
      UserError: it is damaged, or of another version.
    """
    path = directory / _RECORD
    if not path.exists():
        return {}
    remedy = f"delete {directory} and run launch/train.py to run this step again"
    record = disk.read_json(path, remedy)
    wanted = {"config": dict, "inputs": dict, "fingerprint": str, "finished": bool, "starts": list}
    if record.get("finished"):
        wanted |= {"outputs": dict}
    for field, kind in wanted.items():
        if not isinstance(record.get(field), kind):
            raise UserError(
                f"{path}: {field} is missing or damaged, or another version wrote it; {remedy}"
            )
    if not starts.is_sound(record["starts"], finished=record["finished"]):
        raise UserError(f"{path}: starts is damaged; {remedy}")
    own = _fingerprint(step or directory.name, record["config"], record["inputs"])
    if record["fingerprint"] != own:
        raise UserError(f"{path}: the fingerprint is not that of its content; {remedy}")
    return record


def _has_output(directory: Path) -> bool:
    return any(path.name != _RECORD for path in directory.iterdir())


def _fingerprint(step: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    return _hash({"step": step, "config": config, "inputs": inputs})


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
