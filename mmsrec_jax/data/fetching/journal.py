"""What a downloader has done, a line of JSON each, so that the next start does only the rest.

A line is added after the picture has its name. Neither waits for the disk itself: after a power cut
the sizes of the files are compared with the lines, and what differs is fetched again.
"""

import json
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

from mmsrec_jax.runtime import disk, reading
from mmsrec_jax.runtime.errors import UserError

_SYNC_SECONDS = 5.0


class Journal:
    """The lines of earlier starts, and where new ones go.

    stored: item -> (URL, bytes of the file). failed: item -> the line of its last failure.

    Args:
      path: the file; made when there is none.
      max_side: of the pictures beside it, which all have the same.

    Raises:
      UserError: the file is damaged, or speaks of another `max_side`.
    """

    def __init__(self, path: Path, max_side: int):
        self.stored: dict[str, tuple[str, int]] = {}
        self.failed: dict[str, dict[str, Any]] = {}
        self._path = path
        length = self._read(max_side) if path.exists() else 0
        self._file: BinaryIO = path.open("ab")
        self._file.truncate(length)  # of a line that was cut off
        if not length:
            self._write({"max_side": max_side})
        self._synced = time.monotonic()

    def add(self, line: dict[str, Any]) -> None:
        """Records a picture (with its `sha256` and `bytes`) or a failure (with its `reason`)."""
        self._keep(line)
        self._write(line)
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self._sync()

    def close(self) -> None:
        self._sync()
        self._file.close()

    def _read(self, max_side: int) -> int:
        """Bytes of the whole lines."""
        length = 0
        with reading.open_regular(self._path) as file:
            for number, raw in enumerate(file, 1):
                if not raw.endswith(b"\n"):
                    break
                length += len(raw)
                where = f"{self._path}, line {number}"
                try:
                    line = json.loads(raw)
                    if number > 1:
                        self._keep(line)
                        continue
                    known = line["max_side"]
                except (ValueError, KeyError, TypeError, RecursionError):
                    thing = "line" if number > 1 else "file"
                    raise UserError(f"{where}: damaged; remove the {thing}") from None
                if known != max_side:
                    raise UserError(
                        f"{self._path.parent.parent}: its pictures have sides of up to {known}; "
                        f"give --max_side={known}, or another folder"
                    )
        return length

    def _keep(self, line: dict[str, Any]) -> None:
        item, url = line["item"], line["url"]
        if not (isinstance(item, str) and isinstance(url, str)):
            raise TypeError
        if "reason" in line:
            if not isinstance(line["reason"], str):
                raise TypeError
            self.failed[item] = line
            self.stored.pop(item, None)
        else:
            if type(line["bytes"]) is not int:
                raise TypeError
            self.stored[item] = (url, line["bytes"])
            self.failed.pop(item, None)

    def _write(self, line: dict[str, Any]) -> None:
        with disk.named(self._path):
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()

    def _sync(self) -> None:
        with disk.named(self._path):
            os.fsync(self._file.fileno())
        self._synced = time.monotonic()
