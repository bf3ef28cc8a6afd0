"""The columns of one atomic file: read at once, and what is wrong named by its line."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from mmsrec_jax.data.records import LONGEST_ID
from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError, first_line
from mmsrec_jax.runtime.reading import LONGEST_LINE

_TYPES = ("token", "token_seq", "float", "float_seq")


class Table:
    """The columns of one file as strings; numbers and ids are checked when asked for.

    Raises UserError for a file that is none, and for a missing column of `required`.
    """

    def __init__(self, path: Path, required: Sequence[str]):
        self._path = path
        reading.check_regular(path, within=path.parent)
        self.names = _header(path)
        self._require(required)
        options = {
            "read_options": pa.csv.ReadOptions(
                column_names=self.names, skip_rows=1, block_size=LONGEST_LINE
            ),
            "parse_options": pa.csv.ParseOptions(delimiter="\t", quote_char=False),
            "convert_options": pa.csv.ConvertOptions(
                column_types=dict.fromkeys(self.names, pa.string()), strings_can_be_null=False
            ),
        }
        try:
            name = f"read {path.name}"
            with reading.open_unpacked(path, within=path.parent, name=name) as stream:
                self._table = pa.csv.read_csv(stream, **options)
        except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
            for _ in _lines(path, len(self.names)):  # raises where the damage is
                pass
            raise UserError(f"{path}: {first_line(error)}") from error
        if not self._table.num_rows:
            raise UserError(f"{path}: a header but no rows")

    def _require(self, names: Sequence[str]) -> None:
        missing = [name for name in names if name not in self.names]
        if missing:
            raise UserError(
                f"{self._path}: no column {', '.join(missing)}; it has {', '.join(self.names)}"
            )

    def strings(self, name: str) -> list[str]:
        """All values of a column."""
        self._require([name])
        return self._table[name].to_pylist()

    def codes(self, name: str) -> tuple[list[str], np.ndarray]:
        """The distinct ids in order of appearance, and int32[rows] indices into them."""
        encoded = self._table[name].combine_chunks().dictionary_encode()
        values = encoded.dictionary
        if pc.any(pc.equal(values, "")).as_py():
            self._blame(name, lambda cell: cell == "", "is empty")
        if pc.any(pc.match_substring(values, "\0")).as_py():
            # numpy's strings end at a NUL: two ids would become one.
            self._blame(name, lambda cell: "\0" in cell, "holds a NUL character; remove it")
        if pc.max(pc.utf8_length(values)).as_py() > LONGEST_ID:
            problem = f"is longer than the {LONGEST_ID} characters that an id may have"
            self._blame(name, lambda cell: len(cell) > LONGEST_ID, problem)
        return values.to_pylist(), encoded.indices.to_numpy()

    def unique_ids(self, name: str) -> list[str]:
        """The ids of a column, no two of which may be equal."""
        values, codes = self.codes(name)
        if len(values) < len(codes):
            is_new = np.diff(np.maximum.accumulate(codes), prepend=-1) > 0  # codes count upwards
            row = int(np.argmin(is_new))
            self._blame_row(row, f"{name} {values[codes[row]]!r} occurs a second time")
        return values

    def floats(self, name: str) -> np.ndarray:
        """float64[rows], all finite."""
        column = self._table[name]
        try:
            return reading.to_floats(column, finite=True)
        except reading.NotANumber as error:
            cell = reading.shown(column[error.row].as_py())
            self._blame_row(error.row, f"{name} {cell} is not a number")

    def _blame(self, name: str, is_bad: Callable[[str], bool], problem: str) -> NoReturn:
        cells = self.strings(name)
        row = next(row for row, cell in enumerate(cells) if is_bad(cell))
        self._blame_row(row, f"{name} {reading.shown(cells[row])} {problem}")

    def lines(self, rows: Sequence[int]) -> list[int]:
        """Where in the file these rows stand, given in ascending order."""
        found: list[int] = []
        for number, (line, _) in enumerate(_lines(self._path, len(self.names))):
            if len(found) == len(rows):
                break
            if number == rows[len(found)]:
                found.append(line)
        return found

    def _blame_row(self, row: int, problem: str) -> NoReturn:
        line = next(iter(self.lines([row])), None)
        where = f"{self._path}:{line}" if line else f"{self._path}: row {row + 1}"
        raise UserError(f"{where}: {problem}")


def _header(path: Path) -> list[str]:
    try:
        with reading.open_unpacked(path, within=path.parent) as stream:
            raw = _line(stream, path, 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from error
    if not raw.strip():
        raise UserError(f"{path}: empty; expected a header such as user_id:token<tab>item_id:token")
    names = []
    for cell in _text(raw.removeprefix(b"\xef\xbb\xbf"), path, 1).split("\t"):
        name, _, type = cell.rpartition(":")
        if not name or type not in _TYPES:
            raise UserError(
                f"{path}:1: column {reading.shown(cell)} is not name:type with a type of "
                f"{', '.join(_TYPES)}"
            )
        if name in names:
            raise UserError(f"{path}:1: column {reading.shown(name)} occurs twice")
        names.append(name)
    return names


def _lines(path: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of every data row; the slow reader, to find what is wrong where."""
    try:
        with reading.open_unpacked(path, within=path.parent) as stream:
            number = 0
            while raw := _line(stream, path, number := number + 1):
                cells = _text(raw, path, number).split("\t")
                if number == 1 or cells == [""]:
                    continue
                if len(cells) != columns:
                    raise UserError(
                        f"{path}:{number}: {len(cells)} columns, the header has {columns}"
                    )
                yield number, cells
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged, unpack or copy it again: {first_line(error)}") from error


def _line(stream: BinaryIO, path: Path, number: int) -> bytes:
    """The next line of a file, empty at its end."""
    raw = stream.readline(LONGEST_LINE + 1)
    if len(raw) > LONGEST_LINE:
        raise UserError(f"{path}:{number}: longer than {LONGEST_LINE:,} bytes; shorten it")
    return raw


def _text(raw: bytes, path: Path, line: int) -> str:
    try:
        text = raw.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{line}: not UTF-8 at byte {error.start} of the line; convert the file"
        ) from None
    if "\r" in text:
        raise UserError(f"{path}:{line}: a carriage return inside the line; remove it")
    return text
