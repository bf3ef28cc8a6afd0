"""What all workers know, and the files by which they pass rows on.

Rows go from step to step in files, and only names through Beam: its local runner keeps every
collection in memory. A step that is done twice writes the same file twice.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from etils import epath

from mmsrec_jax.runtime import disk
from mmsrec_jax.runtime.buckets.objects import is_url

_COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4")


@dataclass(frozen=True)
class Plan:
    """How a data set is read in partitions.

    source: name of the published data set. folder: for what the workers leave to each other; all
    see it. parts: how many partitions of users there are. rating_threshold, user_core, item_core,
    only_items_with_image: as of `data.build.DataSettings`.
    """

    source: str
    folder: str
    parts: int
    rating_threshold: float | None
    user_core: int
    item_core: int
    only_items_with_image: bool

    def put_tables(self, name: str, batches: Sequence[pa.RecordBatch]) -> None:
        """Writes tables of equal columns, one or more, which `table` reads one by one."""

        def write(file: BinaryIO) -> None:
            with pa.ipc.new_file(file, batches[0].schema, options=_COMPRESSED) as writer:
                for batch in batches:
                    writer.write_batch(batch)

        self._put(name, write)

    def table(self, name: str, number: int = 0) -> pa.RecordBatch:
        """One of the tables of a file."""
        with self._path(name).open("rb") as file:
            return pa.ipc.open_file(file).get_batch(number)

    def put_arrays(self, name: str, **arrays: np.ndarray) -> None:
        """Writes arrays by name."""
        self._put(name, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """All arrays of a file."""
        with self._path(name).open("rb") as file, np.load(file) as found:
            return dict(found)

    def put_record(self, name: str, record: dict[str, Any]) -> None:
        """Writes what JSON can hold."""
        self._put(name, lambda file: file.write(json.dumps(record).encode()))

    def record(self, name: str) -> dict[str, Any]:
        """What `put_record` wrote; empty where it did not."""
        path = self._path(name)
        return json.loads(path.read_text()) if path.exists() else {}

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> epath.Path:
        return epath.Path(self.folder) / name

    def _put(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """A file that appears whole, whichever of two equal workers writes it."""
        path = self._path(name)
        if is_url(self.folder):  # an object does so
            with path.open("wb") as file:
                write(file)
            return
        partial = disk.temporary(Path(path))
        with partial.open("wb") as file:
            write(file)
        partial.replace(path)
