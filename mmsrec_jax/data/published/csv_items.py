"""Items out of separated text with quotes, a row each."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmsrec_jax.data.published.files import lines
from mmsrec_jax.data.published.rows import Ids
from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError, first_line


def read(
    path: Path, columns: Sequence[str], *, separator: str = ","
) -> Iterator[tuple[str, dict[str, str]]]:
    """(file and line for messages, column -> cell) of each row of a file with a header.

    columns: those that the header must have; it may have more, in any order.

    Raises:
      UserError: a column is missing, or a row has another number of cells.
    """
    header: list[str] = []
    for where, cells in records(path, separator):
        if not header:
            header = cells
            for name in columns:
                if header.count(name) != 1:
                    raise UserError(
                        f"{where}: no column {name}, or two: the header reads "
                        f"{reading.shown(separator.join(header))}"
                    )
            continue
        if len(cells) != len(header):
            raise UserError(f"{where}: {len(cells)} columns, the header has {len(header)}")
        yield where, dict(zip(header, cells, strict=True))


def records(
    path: Path, separator: str, encoding: str = "utf-8", *, strict: bool = False
) -> Iterator[tuple[str, list[str]]]:
    """(file and line for messages, cells) of each row, that of the header too.

    strict: quotes must be closed, and doubled inside of a quoted cell. Otherwise a cell with others
      is what `csv.reader` makes of it.

    Raises:
      UserError: quotes are not as they must be, or the text is not of the encoding.
    """
    number = before = 0  # of the line read last: blank ones are passed over

    def text() -> Iterator[str]:
        nonlocal number
        for number, line in lines(path, encoding):  # noqa: B007
            yield f"{line}\n"

    try:
        for cells in csv.reader(text(), delimiter=separator, strict=strict):
            yield f"{path}:{number}", cells
            before = number
    except csv.Error as error:
        raise UserError(
            f"{path}:{number}: {first_line(error)}; is a quote open in the row after line {before}?"
        ) from None


def checked_id(where: str, id: str, ids: Ids, of: str = "item") -> str:
    """`id` if it is of the publisher's form, else UserError."""
    if not re.fullmatch(ids.pattern.removeprefix("^").removesuffix("$"), id):
        raise UserError(
            f"{where}: {of} {reading.shown(id)} is not {ids.form}; are columns swapped, or has a "
            "program changed the ids?"
        )
    return id
