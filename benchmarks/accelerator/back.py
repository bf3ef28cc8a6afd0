"""What runs need to go on elsewhere, in a few files of limited size.

A machine that is rented for minutes gives back at most 8 files of 16 MiB each, 64 MiB in all.
`save` writes the folders of the runs' steps as one tar, cut into `part-1.tar`, `part-2.tar`, ...,
without what can be made again (the prepared data, item features, compiled programs, older
checkpoints). What is read no more (weights whose readers have finished) comes last. `restore` lays
it out again.
"""

import dataclasses
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from benchmarks.accelerator.loads import LoadError, sha256

PART_BYTES = 31 * 2**19  # of 16 MiB
PARTS = 4  # beside this folder's manifest and three small files
_MANIFEST = "manifest.json"
_MADE_AGAIN = ("data", "features")  # steps
_SEQUENTIAL = ("sasrec", "bert4rec", "gru4rec", "molar", "hm4sr")
"""Steps that begin again when they have not finished. They take seconds, and need their best
checkpoint beside the newest."""
_NOT_BROUGHT = ("tensorboard", "profile", "checkpoints")  # of a step
_TRAINED = ("weights", "model")  # of a step: what it leaves for others
_READERS = {"summarizer": ("summaries",), "sasrec": ("retrieval", "evaluation")}
"""Step -> the steps that read what it trained; `evaluation` where it is not named."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """Bytes that were written, and what found no room: path below the work folder -> bytes."""

    size: int
    left_out: Mapping[str, int]


def save(
    work: Path,
    runs: Sequence[str],
    folder: Path,
    *,
    running: bool,
    room: int = PARTS * PART_BYTES,
) -> Saved:
    """Writes what `runs`, folders of `work`, need to `folder`, replacing what is there.

    running: they go on meanwhile: of a step under way nothing is taken.
    room: bytes of all parts. What does not fit is left out, the least needed first; a step whose
      checkpoint is left out begins again.
    """
    taken: list[Path] = []
    left_out: dict[str, int] = {}
    used = 2 * tarfile.RECORDSIZE
    for path in _in_order([work / name for name in runs], running=running):
        size = _size(path)
        if used + size > room:
            left_out[str(path.relative_to(work))] = size
            continue
        used += size
        taken.append(path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".back-") as partial:
        made = Path(partial) / "back"
        writer = _Parts(made)
        with tarfile.open(fileobj=cast(IO[bytes], writer), mode="w|") as tar:
            for path in taken:
                tar.add(path, arcname=str(path.relative_to(work)))
        parts = writer.finish()
        manifest = {
            part.name: {"size": part.stat().st_size, "sha256": sha256(part)} for part in parts
        }
        (made / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        if folder.exists():
            os.replace(folder, Path(partial) / "old")
        os.replace(made, folder)
        size = sum((folder / part.name).stat().st_size for part in parts)
    return Saved(size, left_out)


def restore(folder: Path, work: Path) -> None:
    """Lays out in `work` the runs that `save` wrote to `folder`; those that are there are left.

    Raises:
      LoadError: a part is missing or damaged.
    """
    manifest = folder / _MANIFEST
    if not manifest.exists():
        raise LoadError(f"{manifest}: no such file; give the --out of the call to continue")
    with tempfile.TemporaryDirectory(dir=work) as partial:
        whole, laid_out = Path(partial) / "whole.tar", Path(partial) / "runs"
        laid_out.mkdir()
        with whole.open("wb") as file:
            for name, known in json.loads(manifest.read_text()).items():
                part = folder / name
                if not part.exists() or sha256(part) != known["sha256"]:
                    raise LoadError(f"{part}: missing or damaged; bring it to this machine again")
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, file)
        with tarfile.open(whole) as tar:
            tar.extractall(laid_out, filter="data")
        for run in laid_out.iterdir():
            if not (work / run.name).exists():
                os.replace(run, work / run.name)


def steps(run: Path) -> dict[str, dict[str, Any]]:
    """The record of every step of a run that has begun, in the order in which they began."""
    paths = sorted(run.glob("*/step.json"), key=lambda path: path.stat().st_mtime_ns)
    return {path.parent.name: json.loads(path.read_text()) for path in paths}


def _in_order(runs: Sequence[Path], *, running: bool) -> Iterator[Path]:
    """Files and folders to bring, the most needed first."""
    small: list[Path] = []
    checkpoints: list[Path] = []
    needed: list[Path] = []
    finished_with: list[Path] = []
    for run in runs:
        known = {name: step for name, step in steps(run).items() if name not in _MADE_AGAIN}
        done = [name for name, step in known.items() if step["finished"]]
        for name in known:
            if name not in done and (running or name in _SEQUENTIAL):
                continue
            folder = run / name
            kept = [p for p in folder.iterdir() if p.name not in (*_NOT_BROUGHT, *_TRAINED)]
            small += sorted(kept)
            if name not in done:
                found = [p for p in (folder / "checkpoints").glob("*") if p.name.isdigit()]
                checkpoints += sorted(found, key=lambda path: int(path.name))[-1:]
            is_read = not set(_READERS.get(name, ("evaluation",))) <= set(done)
            trained = [folder / part for part in _TRAINED if (folder / part).exists()]
            (needed if is_read else finished_with).extend(trained)
        small += [p for p in (run / "table.json",) if p.exists()]
    return iter([*small, *checkpoints, *needed, *finished_with[::-1]])


def _size(path: Path) -> int:
    """Bytes in a tar, with a block of head and one of rest for every file and folder."""
    paths = [path, *path.rglob("*")]
    return sum(2 * tarfile.BLOCKSIZE + (p.stat().st_size if p.is_file() else 0) for p in paths)


class _Parts(io.RawIOBase):
    """A file that is written into parts of limited size."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._paths: list[Path] = []
        self._file: Any = None
        folder.mkdir()

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        while rest:
            if self._file is None or self._file.tell() == PART_BYTES:
                self._next()
            rest = rest[self._file.write(rest[: PART_BYTES - self._file.tell()]) :]
        return len(data)

    def finish(self) -> list[Path]:
        if self._file is not None:
            self._file.close()
        return self._paths

    def _next(self) -> None:
        if self._file is not None:
            self._file.close()
        self._paths.append(self._folder / f"part-{len(self._paths) + 1}.tar")
        self._file = self._paths[-1].open("wb")
