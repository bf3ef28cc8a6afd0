"""Interactions out of JSON lines: an object each, of which a few fields are read."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from mmsrec_jax.data.published.files import Chunk, chunks, decoded
from mmsrec_jax.data.published.rows import Layout, Notes, Rows, checked
from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError

_BLANKS = re.compile(rb"^[ \t\r]+$", re.MULTILINE)


@dataclass(frozen=True)
class Fields:
    """Which fields hold what; of `times` a file has one, the publisher's or an older name of it."""

    user: str
    item: str
    rating: str
    times: tuple[str, ...]

    def types(self) -> dict[str, pa.DataType]:
        names = (self.rating, *self.times)
        texts = (self.user, self.item)
        return dict.fromkeys(texts, pa.string()) | dict.fromkeys(names, pa.float64())


def read(path: Path, fields: Fields, layout: Layout, notes: Notes) -> Iterator[Rows]:
    """The interactions of a file in its order, in parts of bounded size.

    Raises:
      UserError: a line is no JSON object, or a field is missing or of another type.
    """
    for chunk in map(_without_blanks, chunks(path)):
        columns = _columns(chunk, fields.types())
        if not len(columns[fields.user]):
            continue
        columns["time"] = pc.coalesce(*(columns[name] for name in fields.times))
        for name in (fields.user, fields.item, fields.rating, "time"):
            if columns[name].null_count:
                row = int(columns[name].is_null().to_numpy(zero_copy_only=False).argmax())
                missing = fields.times[0] if name == "time" else name
                raise UserError(
                    f"{path}:{chunk.line_of_row(row)}: no field {missing}; is the file what it "
                    "should be?"
                )
        yield checked(
            chunk, layout, notes, columns[fields.user], columns[fields.item],
            _floats(columns["time"]), _floats(columns[fields.rating]),
        )  # fmt: skip


def _without_blanks(chunk: Chunk) -> Chunk:
    """The same lines, those of blanks alone empty: to count rows by, they are none."""
    return chunk._replace(data=_BLANKS.sub(b"", chunk.data))


def _columns(chunk: Chunk, types: dict[str, pa.DataType]) -> dict[str, pa.Array]:
    schema = pa.schema(list(types.items()))
    if chunk.data.strip() and not _are_objects(chunk.data):
        return _slowly(chunk, schema)
    try:
        chunk.data.decode()  # pyarrow takes any bytes
        table = pa.json.read_json(
            io.BytesIO(chunk.data),
            read_options=pa.json.ReadOptions(block_size=len(chunk.data) + 1),
            parse_options=pa.json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="ignore"
            ),
        )
    except (pa.ArrowException, UnicodeDecodeError):
        return _slowly(chunk, schema)
    return {name: table[name].combine_chunks() for name in types}


def _are_objects(data: bytes) -> bool:
    """Whether every line begins an object: of lines of `null` alone pyarrow ends the process."""
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    return data.startswith(b"{") and data.count(b"\n{") + 1 == lines


def _slowly(chunk: Chunk, schema: pa.Schema) -> dict[str, pa.Array]:
    """The same with Python's own reader, which says what is wrong where."""
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for number, line in chunk.lines():
        if not line.strip():
            continue
        where = f"{chunk.path}:{number}"
        found = reading.parse_json(decoded(line, chunk.path, number), where)
        if not isinstance(found, dict):
            raise UserError(f"{where}: {reading.shown(found)} is no JSON object")
        for name, type in zip(schema.names, schema.types, strict=True):
            value = found.get(name)
            is_right = isinstance(value, str) if type == pa.string() else _is_number(value)
            if value is not None and not is_right:
                wanted = "text in quotes" if type == pa.string() else "a number"
                raise UserError(f"{where}: {name} {reading.shown(value)} is not {wanted}")
            columns[name].append(value if type == pa.string() or value is None else float(value))
    return {name: pa.array(columns[name], schema.field(name).type) for name in columns}


def _is_number(value: Any) -> bool:
    # Whole numbers of JSON may be larger than any float.
    return isinstance(value, int | float) and type(value) is not bool and abs(value) < 1e300


def _floats(column: pa.Array) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False)
