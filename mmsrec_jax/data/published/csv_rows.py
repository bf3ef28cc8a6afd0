"""Interactions out of separated text: a line each, with or without a header."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from mmsrec_jax.data.published.files import Chunk, chunks, decoded
from mmsrec_jax.data.published.rows import Layout, Notes, Rows, checked
from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError, first_line

_UNIT = "\x1f"  # stands for a separator of several characters, which pyarrow has not
_FLOAT_TIMES = "timestamps written as floats, which may be rounded"


@dataclass(frozen=True)
class Columns:
    """The columns of a file.

    names: all of them in the order of the publisher. user, item, time, rating, history: which of
    them are read; None where there is none. A file with a header may have more columns, in any
    order. dates: whether a time is YYYY-MM-DD.
    """

    names: tuple[str, ...]
    user: str
    item: str
    time: str
    rating: str | None = None
    history: str | None = None
    header: bool = True
    separator: str = ","
    dates: bool = False


def read(path: Path, columns: Columns, layout: Layout, notes: Notes) -> Iterator[Rows]:
    """The interactions of a file in its order, in parts of bounded size.

    Raises:
      UserError: anything wrong with the file, naming file, line and what was expected.
    """
    names = columns.names
    for chunk in chunks(path):
        if columns.header and chunk.first == 1:
            names, chunk = _header(chunk, columns)
            if not chunk.data:
                continue
        table = _table(chunk, names, columns.separator)
        times = _times(chunk, table, columns, notes)
        ratings = _numbers(chunk, table, columns.rating) if columns.rating else None
        # Of a header alone, or of nothing but blank lines.
        if table.num_rows:
            yield checked(
                chunk, layout, notes, _column(table, columns.user), _column(table, columns.item),
                times, ratings, _column(table, columns.history) if columns.history else None,
            )  # fmt: skip


def _header(chunk: Chunk, columns: Columns) -> tuple[tuple[str, ...], Chunk]:
    """The names in the first line, and the other lines."""
    line, _, rest = chunk.data.partition(b"\n")
    text = decoded(line.rstrip(b"\r"), chunk.path, 1)
    names = _cells(text, columns.separator, f"{chunk.path}:1")
    read = (columns.user, columns.item, columns.time, columns.rating, columns.history)
    for name in filter(None, read):
        if names.count(name) != 1:
            raise UserError(
                f"{chunk.path}:1: no column {name}, or two: the header reads "
                f"{reading.shown(text)}; the published file has {','.join(columns.names)}"
            )
    return tuple(names), Chunk(chunk.path, 2, rest)


def _table(chunk: Chunk, names: tuple[str, ...], separator: str) -> pa.Table:
    if chunk.data.count(b"\r") != chunk.data.count(b"\r\n"):  # pyarrow would end a row there
        for number, raw in chunk.lines():
            if b"\r" in raw:
                raise UserError(f"{chunk.path}:{number}: a carriage return inside the line")
    data, one = chunk.data, separator
    if len(separator) > 1:
        data, one = data.replace(separator.encode(), _UNIT.encode()), _UNIT
    if not data.strip():
        return pa.table({name: pa.array([], pa.string()) for name in names})
    try:
        return pa.csv.read_csv(
            io.BytesIO(data),
            read_options=pa.csv.ReadOptions(column_names=list(names), block_size=len(data) + 1),
            parse_options=pa.csv.ParseOptions(delimiter=one),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowException as error:
        for number, raw in chunk.lines():
            line = decoded(raw, chunk.path, number).replace(separator, one)
            cells = _cells(line, one, f"{chunk.path}:{number}")
            if len(cells) != len(names):
                raise UserError(
                    f"{chunk.path}:{number}: {len(cells)} columns and not {len(names)}, "
                    f"{','.join(names)}"
                ) from None
        raise UserError(f"{chunk.path}: {first_line(error)}") from error


def _cells(line: str, separator: str, where: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error as error:
        raise UserError(f"{where}: {first_line(error)}") from None


def _times(chunk: Chunk, table: pa.Table, columns: Columns, notes: Notes) -> np.ndarray:
    if not columns.dates:
        column = table[columns.time]
        if floats := pc.sum(pc.match_substring_regex(column, "[.eE]")).as_py():
            notes[_FLOAT_TIMES] += floats
        return _numbers(chunk, table, columns.time)
    encoded = _column(table, columns.time).dictionary_encode()
    codes, texts = encoded.indices.to_numpy(), encoded.dictionary
    days = pc.strptime(texts, "%Y-%m-%d", "s", error_is_null=True)
    # strptime takes 2018-9-2, blanks, and the 31st of every month.
    wrong = pc.invert(pc.fill_null(pc.equal(pc.strftime(days, "%Y-%m-%d"), texts), False))
    if pc.any(wrong).as_py():
        row = int(wrong.to_numpy(zero_copy_only=False)[codes].argmax())
        cell = reading.shown(texts[codes[row]].as_py())
        raise UserError(
            f"{chunk.path}:{chunk.line_of_row(row)}: {columns.time} {cell} is no date YYYY-MM-DD"
        )
    return pc.cast(days, pa.int64()).to_numpy()[codes].astype(np.float64)


def _numbers(chunk: Chunk, table: pa.Table, name: str) -> np.ndarray:
    try:
        return reading.to_floats(table[name], finite=True)
    except reading.NotANumber as error:
        cell = reading.shown(table[name][error.row].as_py())
        raise UserError(
            f"{chunk.path}:{chunk.line_of_row(error.row)}: {name} {cell} is not a number; are "
            "columns swapped, or is the file another?"
        ) from None


def _column(table: pa.Table, name: str) -> pa.Array:
    return table[name].combine_chunks()


def with_history(columns: Columns) -> Columns:
    """The same file with a column of the items before each, as benchmark splits have it."""
    return replace(columns, names=(*columns.names, "history"), history="history")
