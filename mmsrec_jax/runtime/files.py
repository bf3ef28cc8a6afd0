"""Files that appear whole or not at all, also when the power goes; of several processes the main
one writes them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmsrec_jax.runtime import disk, processes
from mmsrec_jax.runtime.errors import UserError


def write_parquet(path: str | Path, table: pa.Table) -> None:
    """Writes through a temporary neighbor, so that a reader never sees half a file."""
    write(path, lambda partial: pq.write_table(table, partial))


def write_text(path: str | Path, text: str) -> None:
    """The same for UTF-8 text."""
    write(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """The same for bytes."""
    write(path, lambda partial: partial.write_bytes(data))


def write_json(path: str | Path, value: Any) -> None:
    """The same for what JSON can hold."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def check_replaces(path: str | Path, begins: str, kind: str) -> None:
    """Raises UserError when a folder stands at `path`, or a file that does not begin as this `kind`
    of file, which the user may have named by a mistake."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: a folder stands there; name a file")
    if not processes.is_main() or not path.is_file():
        return
    with path.open("rb") as file:
        found = file.read(len(begins))
    if found and found != begins.encode():
        raise UserError(f"{path}: a file that is no {kind} of ours stands there; name another")


def write(path: str | Path, make: Callable[[Path], object]) -> None:
    """The same for what `make` writes to the temporary path it is given."""
    if not processes.is_main():
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = disk.temporary(path)
    try:
        with disk.named(path):
            make(partial)
            disk.sync(partial)
            os.replace(partial, path)
            disk.sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
