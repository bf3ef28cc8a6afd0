"""Files in loads: folders `load-1`, `load-2`, ... of a limited size, for a machine without network.

`pack` copies files into the loads in their order and cuts those that do not fit where a load ends.
Every load has the same `manifest.json`, so that any of them tells what is missing. `join` puts one
file together again and checks it against the hash that was taken when it was packed.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

LOAD_BYTES = 55 * 2**20
_MANIFEST = "manifest.json"
_CHUNK = 2**20


class LoadError(Exception):
    """A load is missing, or what it holds is not what was packed."""


@dataclasses.dataclass(frozen=True)
class Packed:
    """One file of the loads.

    Attributes:
      name: path of the file, with slashes.
      size: bytes.
      sha256: of its content.
      pieces: (path below the folder of the loads, size) in order; a whole file is one piece.
    """

    name: str
    size: int
    sha256: str
    pieces: tuple[tuple[str, int], ...]


def pack(
    groups: Iterable[Sequence[tuple[str, Path]]], folder: Path, *, room: int = LOAD_BYTES
) -> list[Packed]:
    """Fills `folder` with loads, replacing those that are there; all or nothing.

    groups: (name, file) pairs; every group begins a load of its own, so that who needs one group
      takes its loads and no others. A file below a quarter of the room is not cut.
    room: bytes of a load.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".loads-") as partial:
        packed: list[Packed] = []
        number, used = 0, room
        for group in groups:
            used = room  # the next file begins a load
            for name, source in group:
                pieces: list[tuple[str, int]] = []
                size = source.stat().st_size
                with source.open("rb") as file:
                    while not pieces or file.tell() < size:
                        left = size - file.tell()
                        if used >= room or (left > room - used and size < room // 4):
                            number, used = number + 1, 0
                        count = min(left, room - used)
                        whole = count == size
                        path = f"load-{number}/{name}" + ("" if whole else f".{len(pieces) + 1}")
                        _copy(file, Path(partial) / path, count)
                        used += count
                        pieces.append((path, count))
                packed.append(Packed(name, size, sha256(source), tuple(pieces)))
        text = json.dumps([dataclasses.asdict(entry) for entry in packed], indent=1) + "\n"
        loads = sorted(path for path in Path(partial).iterdir())
        for load in loads:
            (load / _MANIFEST).write_text(text)
        for old in folder.glob("load-*"):
            shutil.rmtree(old)
        for load in loads:
            os.replace(load, folder / load.name)
    return packed


def read_manifest(folder: Path) -> list[Packed]:
    """What the loads in `folder` hold. Raises LoadError when there is none."""
    manifests = sorted(folder.glob(f"load-*/{_MANIFEST}"))
    if not manifests:
        raise LoadError(f"{folder}: no load-*/{_MANIFEST} here; fetch.py makes them")
    texts = {path.read_text() for path in manifests}
    if len(texts) > 1:
        raise LoadError(f"{folder}: loads of different calls of fetch.py; bring one call's")
    return [
        Packed(entry["name"], entry["size"], entry["sha256"], tuple(map(tuple, entry["pieces"])))
        for entry in json.loads(texts.pop())
    ]


def join(packed: Packed, folder: Path, out: Path) -> None:
    """Puts a file of the loads in `folder` together as `out`, atomically.

    What is there already with its hash is left.

    Raises:
      LoadError: a piece is missing or damaged.
    """
    if out.exists() and out.stat().st_size == packed.size and sha256(out) == packed.sha256:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as partial:
        whole = Path(partial) / out.name
        for path, size in packed.pieces:
            piece = folder / path
            if not piece.exists() or piece.stat().st_size != size:
                load = path.partition("/")[0]
                raise LoadError(f"{piece}: missing or cut short; bring {load} to this machine too")
            with piece.open("rb") as file:
                _copy(file, whole, size)
        if sha256(whole) != packed.sha256:
            raise LoadError(f"{packed.name}: not what was packed; bring its loads again")
        os.replace(whole, out)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sizes(folder: Path) -> Iterator[tuple[Path, int]]:
    """Every load and its bytes, the manifest included."""
    for load in sorted(folder.glob("load-*"), key=lambda path: int(path.name.split("-")[1])):
        yield load, sum(path.stat().st_size for path in load.rglob("*") if path.is_file())


def _copy(source: BinaryIO, out: Path, count: int) -> None:
    """Appends the next `count` bytes of an open file to `out`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("ab") as file:
        while count:
            chunk = source.read(min(count, _CHUNK))
            if not chunk:
                raise LoadError(f"{out.name}: the file became shorter while it was read")
            file.write(chunk)
            count -= len(chunk)
