"""Texts that a model wrote, one line of JSON each, with a hash of what each was written from.

A line names what its text is of (its key: an item, a user, a user and a window, ...), then whatever
fields the writer adds, then `inputs`: the hash. A text whose hash is that of its present inputs is
never written again; one whose inputs changed is, and takes the place of the old one. Last in a line
is `check`, a hash of what is before it.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmsrec_jax.inputs.example import Example
from mmsrec_jax.runtime import disk, lock, processes
from mmsrec_jax.runtime.errors import UserError, first_line
from mmsrec_jax.runtime.files import write_text

Key = int | str | tuple[int | str, ...]
Row = dict[str, Any]

_INPUTS, _CHECK = "inputs", "check"


class TextStore:
    """The lines of one `.jsonl` file by key.

    Every process opens and reads it, all at the same moment; the main one writes. A last line that
    a kill cut short is dropped from the file when it is opened.

    Args:
      path: of the file; it need not exist.
      key: name of the field that says what a text is of, or names: `"item"`,
        `("user", "window")`. Keys are then single values, or tuples in this order.

    Raises:
      UserError: a line is no JSON, or is not as it was written.
    """

    def __init__(self, path: Path, key: str | tuple[str, ...]):
        self.path = path
        self._single = isinstance(key, str)
        self._names = (key,) if isinstance(key, str) else key
        self._rows: dict[Key, Row] = {}
        self._lines = 0
        self._version: tuple[int, ...] | None = None
        self._read()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: Key) -> bool:
        return _plain(key) in self._rows

    def __getitem__(self, key: Key) -> Row:
        """The fields of one line. Raises KeyError where there is none."""
        return self._rows[_plain(key)]

    def __iter__(self) -> Iterator[Row]:
        """All lines, in the order in which their keys were first written."""
        return iter(self._rows.values())

    def outdated(self, keys: Sequence[Key], digest: Callable[[int], str]) -> list[int]:
        """Places in `keys` whose text is absent or was written from other inputs.

        digest: place -> hash of its present inputs; asked only where there is a text.
        """
        found = []
        for place, key in enumerate(keys):
            row = self._rows.get(_plain(key))
            if row is None or row.get(_INPUTS) != digest(place):
                found.append(place)
        return found

    def append(self, written: Iterable[tuple[Key, Mapping[str, Any], str]]) -> None:
        """Adds texts, on disk before this returns to the main process.

        written: (key, fields of the line, hash of its inputs) of each. Fields hold what JSON can.
        """
        rows = []
        for key, fields, inputs in written:
            parts = (_plain(key),) if self._single else _plain(key)
            rows.append({**dict(zip(self._names, parts, strict=True)), **fields, _INPUTS: inputs})
            self._put(rows[-1])
        if processes.is_main():
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(map(_line, rows)))
            self._version = _version(self.path)

    def compact(self) -> None:
        """Drops lines that later ones have replaced: the file is then that of a run which wrote
        every text once, in the same order."""
        if self._lines > len(self._rows):
            write_text(self.path, "".join(map(_line, self)))
            self._lines = len(self._rows)
            self._version = _version(self.path)

    def refresh(self) -> None:
        """Reads the file again where another program has written it since."""
        if processes.from_main(lambda: self._version != _version(self.path)):
            self._read()

    def _read(self) -> None:
        self._rows, self._lines = {}, 0
        processes.from_main(lambda: _cut_half_a_line(self.path))
        self._version = _version(self.path)
        if self.path.exists():
            with disk.readable(self.path, "delete the file, its texts are then written again"):
                lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
            for number, line in enumerate(lines, 1):
                self._put(self._parsed(line, number))

    def _put(self, row: Row) -> None:
        values = tuple(row[name] for name in self._names)
        self._rows[values[0] if self._single else values] = row
        self._lines += 1

    def _parsed(self, line: str, number: int) -> Row:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{self.path}, line {number}: no JSON ({first_line(error)}); delete the line, "
                "its text is then written again"
            ) from error
        if not isinstance(row, dict):
            raise UserError(
                f"{self.path}, line {number}: no JSON object; delete the line, its text is then "
                "written again"
            )
        if row.pop(_CHECK, None) != _check(row) or not set(self._names) <= set(row):
            raise UserError(
                f"{self.path}, line {number}: was changed or damaged since it was written; delete "
                "the line, its text is then written again"
            )
        return row


class SharedStores:
    """Stores in one folder that several programs read and write, each in its turn.

    A file is read once, and again only where another program has written it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._opened: dict[Path, TextStore] = {}

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Inside, no other program uses the folder, and what others wrote is known."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock.turn(self.folder):
            for store in self._opened.values():
                store.refresh()
            yield

    def open(self, path: Path, key: str | tuple[str, ...]) -> TextStore:
        """The store of a file, whose folder is made; arguments as of `TextStore`."""
        if path not in self._opened:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._opened[path] = TextStore(path, key)
        return self._opened[path]


def _version(path: Path) -> tuple[int, ...] | None:
    """Another one after every change of a file; None of none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _line(row: Row) -> str:
    return json.dumps(row | {_CHECK: _check(row)}) + "\n"


def _check(row: Row) -> str:
    return hashlib.sha256(json.dumps(row).encode()).hexdigest()[:16]


def digest_of(*parts: Any) -> str:
    """SHA-256 of bytes and of values that JSON can hold, in this order."""
    content = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        content.update(f"{type(part).__name__} {len(raw)} ".encode())
        content.update(raw)
    return content.hexdigest()


def prompt_digest(example: Example) -> str:
    """SHA-256 of all that a model reads of a prompt: tokens, their positions and pixels."""
    content = hashlib.sha256(np.ascontiguousarray(example.tokens, "<i4").tobytes())
    content.update(np.ascontiguousarray(example.positions, "<i4").tobytes())
    for image in example.images:
        content.update(np.ascontiguousarray(image["hw"], "<i4").tobytes())
        content.update(np.ascontiguousarray(image["patches"]).tobytes())
    return content.hexdigest()


def _plain(key: Any) -> Any:
    """`key` with Python's own numbers in place of numpy's, as JSON gives them back."""
    if isinstance(key, tuple):
        return tuple(map(_plain, key))
    return key.item() if isinstance(key, np.generic) else key


def _cut_half_a_line(path: Path) -> None:
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(path, whole)
