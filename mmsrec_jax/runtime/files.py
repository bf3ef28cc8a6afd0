"""Files that appear whole or not at all; of several processes the main one writes them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmsrec_jax.runtime import processes


def write_parquet(path: str | Path, table: pa.Table) -> None:
    """Writes through a temporary neighbor, so that a reader never sees half a file."""
    _write(Path(path), lambda partial: pq.write_table(table, partial))


def write_text(path: str | Path, text: str) -> None:
    """The same for UTF-8 text."""
    _write(Path(path), lambda partial: partial.write_text(text, encoding="utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """The same for bytes."""
    _write(Path(path), lambda partial: partial.write_bytes(data))


def write_json(path: str | Path, value: Any) -> None:
    """The same for what JSON can hold."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def _write(path: Path, write: Callable[[Path], object]) -> None:
    if not processes.is_main():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    write(partial)
    os.replace(partial, path)
