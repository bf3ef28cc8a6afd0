"""Files that somebody else wrote, read so that none of them can hang, overflow or crash a run.

Only regular files are opened: a FIFO would wait for ever, a device may never end. Links are
followed as long as they stay in the folder that was given. What is wrong is one `UserError`.
"""

import csv
import gzip
import io
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmsrec_jax.runtime.errors import UserError, first_line
from mmsrec_jax.runtime.progress import ByteProgress

LONGEST_LINE = 1 << 20  # bytes
_LARGEST_JSON = 256 << 20  # bytes
_MOST_UNPACKED = 200  # bytes that a byte of gzip unpacks to (rows of interactions: 3 to 10) ...
_ALWAYS_UNPACKED = 256 << 20  # ... beyond this many bytes
_MOST_EXPANDED = 32  # bytes of memory for a byte of a parquet file ...
_ALWAYS_ALLOWED = 1 << 30  # ... beyond this many bytes
_NO_MEMORY = 4  # status of parquet_child.py
_PARQUET_CHILD = Path(__file__).with_name("parquet_child.py")
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # a stack each counts as memory

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_IN_JSON = {None: "null", True: "true", False: "false"}
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def home(directory: Path) -> Path:
    """The folder that no link of a model or data set in `directory` may leave: the directory, or
    all that belongs to it where it is a snapshot in the cache of huggingface_hub, which links to
    blobs."""
    directory = directory.resolve()
    return directory.parents[1] if directory.parent.name == "snapshots" else directory


def check_regular(path: Path, within: Path | None = None) -> None:
    """Raises UserError unless `path` is a regular file that can be read.

    within: a folder that no link on the way from it to the file may leave.
    """
    open_regular(path, within).close()


def open_regular(path: Path, within: Path | None = None) -> BinaryIO:
    """The regular file at `path` for reading; raises UserError as `check_regular`, at once."""
    try:
        _check_kind(path, os.stat(path))  # opening a device may already do something
        if within is not None and not path.resolve().is_relative_to(within.resolve()):
            raise UserError(f"{path}: leads out of the folder {within}; put the file itself there")
        # The file may have been replaced since: opening a FIFO must not wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from error
    try:
        _check_kind(path, os.fstat(descriptor))
    except UserError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def open_unpacked(path: Path, within: Path | None = None, *, name: str = "") -> BinaryIO:
    """The same of what a file ending in .gz holds, or of any other file as it is.

    name: of the lines of progress over the file (`told`); empty for none.

    Reading raises UserError once a gzip file holds far more than any data set's would, and
    EOFError, zlib.error or OSError where it is damaged.
    """
    file = open_regular(path, within)
    if name:
        file = told(file, name)
    return file if path.suffix != ".gz" else io.BufferedReader(_Unpacked(path, file))


def told(file: BinaryIO, name: str) -> io.BufferedReader:
    """`file`, with lines of progress when reading all of it takes more than a few seconds."""
    return io.BufferedReader(_Told(file, name))


def read_bytes(path: Path, *, most: int, within: Path | None = None) -> bytes:
    """All of a regular file. Raises UserError as `open_regular`, and for more than `most` bytes."""
    try:
        with open_regular(path, within) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(most + 1) if size <= most else b""
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from error
    if max(size, len(data)) > most:
        raise UserError(f"{path}: has {max(size, len(data)):,} bytes; at most {most:,} are read")
    return data


def read_text(path: Path, *, most: int = _LARGEST_JSON, within: Path | None = None) -> str:
    """All of a regular file as UTF-8. Raises UserError as `read_bytes`."""
    data = read_bytes(path, most=most, within=within)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8; convert the file") from None


def read_json(path: Path, within: Path | None = None) -> Any:
    """The JSON value that a file holds. Raises UserError as `read_text`, and where it is none."""
    return parse_json(read_text(path, within=within), str(path))


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(file and line for messages, value) of every line of JSON that is not blank.

    Raises UserError as `read_text`, and for a line that is no JSON or longer than `LONGEST_LINE`.
    """
    for number, line in enumerate(read_text(path, most=1 << 32).split("\n"), 1):
        where = f"{path}, line {number}"
        if len(line) > LONGEST_LINE:
            raise UserError(f"{where}: longer than {LONGEST_LINE:,} characters; shorten it")
        if line.strip():
            yield where, parse_json(line, where)


def csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and row for messages, cells by the names of the header) of every row of a CSV file.

    Raises UserError as `read_text`, and for a cell of more than 128 KiB.
    """
    number = 0
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(read_text(path), newline="")), 1):
            yield f"{path}, row {number}", row
    except csv.Error as error:
        raise UserError(f"{path}, row {number + 1}: {first_line(error)}; correct it") from error


def parse_json(text: str, where: str) -> Any:
    """The value of JSON text: finite numbers, no deep nesting, text that UTF-8 can hold, no name
    twice in an object.

    Raises UserError that begins with `where`.
    """
    try:
        value = json.loads(
            text,
            parse_constant=_no_constant,
            parse_float=_finite,
            object_pairs_hook=without_twins,
        )
        text.encode()  # a lone surrogate, raw; those written as \\ud800 are found below
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not valid JSON ({error.msg}, character {error.pos}); correct it"
        ) from None
    except RecursionError:
        raise UserError(f"{where}: not valid JSON (nested too deeply); correct it") from None
    except UnicodeEncodeError:
        raise UserError(f"{where}: half a character (a lone \\ud...); correct it") from None
    except ValueError as error:  # not a number that can be held
        raise UserError(f"{where}: not valid JSON ({first_line(error)}); correct it") from None
    return value


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The columns of a parquet file; all, or those named that it has.

    It is decoded in a process of its own (`parquet_child.py`), which may take 1 GiB of memory and
    `_MOST_EXPANDED` times the size of the file. Sizes that the file itself names are not trusted.

    Raises UserError when it is none, is damaged, or needs more memory or time.
    """
    seconds, limit = 60, _ALWAYS_ALLOWED
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        seconds, limit = seconds + (size >> 20), limit + _MOST_EXPANDED * size
        names = [] if columns is None else list(columns)
        try:
            done = subprocess.run(
                [sys.executable, "-P", str(_PARQUET_CHILD), str(limit), str(seconds), *names],
                stdin=file,
                env={
                    **os.environ,
                    **_ONE_THREAD,
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                },
                capture_output=True,
                timeout=4 * seconds,
            )
        except (subprocess.TimeoutExpired, OSError) as error:
            raise UserError(f"{path}: cannot be read as parquet ({first_line(error)})") from error
    if done.returncode == 0:
        table = pa.ipc.open_stream(done.stdout).read_all()
        table.validate(full=True)
        return table
    reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    if done.returncode < 0 or not reason or done.returncode == _NO_MEMORY:
        raise UserError(
            f"{path}: its {size:,} bytes would become more than {limit:,} in memory, or they are "
            "damaged; is it what it should be?"
        )
    reason = re.sub(r"^\w+: ", "", reason)  # the name of the error's class
    raise UserError(f"{path}: cannot be read as parquet ({reason}); write it again")


def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names differ: of two equal ones readers differ in which they take.

    Raises ValueError.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {shown(twin)} stands twice in an object")
    return found


class _Told(io.RawIOBase):
    """The bytes of a file, counted as they are read."""

    def __init__(self, file: BinaryIO, name: str):
        self._file = file
        self._progress = ByteProgress(name, os.fstat(file.fileno()).st_size)

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        size = self._file.readinto(buffer)  # type: ignore[attr-defined]
        self._progress.add(size)
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


class _Unpacked(io.RawIOBase):
    """What a gzip file holds. Raises UserError once it is far more than any data set's would be."""

    def __init__(self, path: Path, file: BinaryIO):
        self._path, self._count, self._file = path, 0, file
        self._size = os.fstat(self._file.fileno()).st_size
        self._stream = gzip.GzipFile(fileobj=self._file)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(LONGEST_LINE if size < 0 else size)
        self._count += len(data)
        if self._count > max(_ALWAYS_UNPACKED, _MOST_UNPACKED * self._size):
            raise UserError(
                f"{self._path}: unpacks to more than {self._count:,} bytes, "
                f"{self._count // self._size} times its size; is it what it should be?"
            )
        return data

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        self._file.close()
        super().close()


def number(text: str) -> float:
    """The number that a text is: plain ASCII digits, without underscores; raises ValueError."""
    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError(f"{shown(text)} is no number")
    return float(text)


class NotANumber(ValueError):
    """A cell of a column is no number; `row` counts from 0."""

    def __init__(self, row: int):
        super().__init__(f"row {row}")
        self.row = row


def to_floats(column: pa.ChunkedArray, *, finite: bool) -> np.ndarray:
    """float64[rows] of numbers, or of texts in plain ASCII digits without spaces; NaN for null.

    Raises NotANumber at the first cell that is none, with `finite` also for NaN and infinities.
    """
    values = _cast(column, finite)
    if values is not None:
        return values
    first, count = 0, len(column)  # the first bad cell lies in these rows
    while count > 1:
        half = count // 2
        if _cast(column.slice(first, half), finite) is not None:
            first, half = first + half, count - half
        count = half
    raise NotANumber(first)


def _cast(column: pa.ChunkedArray, finite: bool) -> np.ndarray | None:
    try:
        values = pc.cast(column, pa.float64()).to_numpy()
    except pa.ArrowException:
        return None
    return values if not finite or np.isfinite(values).all() else None


def shown(value: object) -> str:
    """A value out of a file as a message shows it, and not too long."""
    text = _IN_JSON[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:80]} ..."


def _check_kind(path: Path, found: os.stat_result) -> None:
    for is_kind, name in _KINDS:
        if is_kind(found.st_mode):
            raise UserError(f"{path}: is {name}; a regular file is expected")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    if (value := float(text)) in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:40]} is too large")
    return value
