"""Digests of files: of what a step left, so that damage is seen before it is read, and of what it
read, so that a change is.

A digest is SHA-256 of all bytes, or of a sample of them: the size, the beginning, the end and
blocks spread evenly between.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError

_WHOLE_BYTES = 16 * 2**20  # a file up to this size is read whole
_BLOCK, _BLOCKS = 64 * 2**10, 64
_LOOKED_INTO = 256  # of the files of a folder
_THREADS = 8

# What a step needs no more once it is finished.
_NEEDLESS = {"trackers.json", "tensorboard", "profile", "checkpoints"}
# That, and its diary: not its output.
_PASSING = {"step.json", "metrics.jsonl", *_NEEDLESS}
# Arrays with checksums of their own (`training.weights`), which every reader verifies.
_ARRAYS = "weights"
# Every chunk has a hash in this format, which every reader verifies.
_CHUNKED = ".array_record"


def whole(path: Path, algorithm: str = "sha256") -> str:
    """Of all bytes."""
    with reading.told(path.open("rb"), f"hash {path.name}") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def sampled(path: Path) -> str:
    """Of all bytes of a small file, of a sample of those of a large one."""
    size = path.stat().st_size
    if size <= _WHOLE_BYTES:
        return whole(path)
    content = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for block in range(_BLOCKS):
            file.seek((size - _BLOCK) * block // (_BLOCKS - 1))
            content.update(file.read(_BLOCK))
    return content.hexdigest()


def outputs(directory: Path) -> dict[str, list[Any]]:
    """Size and digest of every file that a step left in its folder, by relative path.

    Sampled are `.array_record` files, which hold hashes of their own. Left out are arrays, which
    have checksums beside them (those are in), checkpoints, logs and what is half written.
    """
    paths = {path.relative_to(directory).as_posix(): path for path in sorted(_files(directory))}
    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(paths, threads.map(_output, paths.values()), strict=True))


def stamps(directory: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of each file of `outputs`: while they stay, so does the rest."""
    found = {path.relative_to(directory).as_posix(): path.stat() for path in _files(directory)}
    return {name: (known.st_ino, known.st_ctime_ns) for name, known in found.items()}


def difference(directory: Path, recorded: Mapping[str, list[Any]]) -> str:
    """What differs first between `recorded`, as `outputs` gave it, and the files there now: which
    file, and how; nothing when all are the same. Files that were added do not count."""
    present = outputs(directory)
    for name, (size, digest) in recorded.items():
        if name not in present:
            return f"{directory / name} is missing"
        if present[name][0] != size:
            return f"{directory / name} has {present[name][0]} bytes and not {size}"
        if present[name][1] != digest:
            return f"{directory / name} has other content"
    return ""


def of_inputs(paths: Iterable[Path], root: Path) -> dict[str, list[Any]]:
    """`of_input` of each file, by its path below `root`."""
    return {path.relative_to(root).as_posix(): of_input(path) for path in sorted(paths)}


def of_input(path: Path) -> list[Any]:
    """What a step records of a file that it reads and that is not the run's: of a small one the
    size and the digest of all bytes; of a large one its time of change too, and that of a sample.

    Raises:
      UserError: it is no regular file.
    """
    known = path.stat()
    if not stat.S_ISREG(known.st_mode):
        raise UserError(f"{path}: a file is wanted; this is a folder, a pipe or a device")
    changed = [known.st_mtime_ns] if known.st_size > _WHOLE_BYTES else []
    return [known.st_size, *changed, sampled(path)]


def of_folder(folder: Path) -> str:
    """The same of a folder of many files: names, sizes and times of change of all regular files in
    it, and the content of a few hundred of them, spread evenly. Of no folder too."""
    found = []
    if folder.is_dir():
        for name in sorted(os.listdir(folder)):
            try:
                known = (folder / name).stat()
            except OSError:  # a link to nothing
                continue
            if stat.S_ISREG(known.st_mode):
                found.append((name, known.st_size, known.st_mtime_ns))
    content = hashlib.sha256()
    step = -(-len(found) // _LOOKED_INTO)
    for place, (name, size, changed) in enumerate(found):
        content.update(f"{len(name)} {name} {size} {changed} ".encode(errors="surrogateescape"))
        if place % step == 0:
            content.update(sampled(folder / name).encode())
    return content.hexdigest()


def is_needless(name: str) -> bool:
    """Whether a file or folder of a finished step is half written, or serves no later program."""
    return name in _NEEDLESS or name.endswith(".partial")


def _files(directory: Path) -> Iterable[Path]:
    for folder, folders, names in os.walk(directory):
        folders[:] = [n for n in folders if n not in {*_PASSING, _ARRAYS} and n[0] != "."]
        for name in names:
            path = Path(folder) / name
            if name not in _PASSING and not name.startswith(".") and path.is_file():
                yield path


def _output(path: Path) -> list[Any]:
    digest = sampled(path) if _CHUNKED in path.name else whole(path)
    return [path.stat().st_size, digest]
