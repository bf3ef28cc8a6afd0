"""Atomic files out of CSV files as shops and spreadsheets write them (*ours*).

Text with a header; separated by commas, semicolons or tabs, whichever the header has most of; with
quotes; packed with gzip or not.
"""

import functools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from mmsrec_jax.data.published import csv_items, files, texts
from mmsrec_jax.data.published.rows import EARLIEST, LATEST
from mmsrec_jax.data.records import LONGEST_ID
from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError

_TYPES = {"user_id": "token", "item_id": "token", "timestamp": "float", "rating": "float"}
_NEEDED = ("user_id", "item_id")
_WITHOUT_IDS = "rows without an id of a user or an item, left out"
_REPEATED = "rows of an item that stands above, left out: the first one counts"

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Row = tuple[str, Mapping[str, str]]  # file and line for messages, cells by our names


@dataclass(frozen=True)
class Csv:
    """One CSV file.

    Attributes:
      path: of the file, plain or .gz.
      columns: our name -> the name in its header, for those that are called otherwise. A column
        that has such a name of ours itself is not read.
      encoding: of its text, one that has ASCII's line breaks.
    """

    path: Path
    columns: Mapping[str, str]
    encoding: str = "utf-8"


@dataclass(frozen=True)
class Converted:
    """What was written: file -> what -> how many rows."""

    written: dict[str, dict[str, int]]

    def moved(self, folder: str) -> "Converted":
        """The same of files that now lie in another folder, also in a bucket."""
        names = {file: f"{folder.rstrip('/')}/{Path(file).name}" for file in self.written}
        return Converted({names[file]: counts for file, counts in self.written.items()})

    def text(self) -> str:
        """A line for each count."""
        return "\n".join(
            f"{file}: {count:,} {what}"
            for file, counts in self.written.items()
            for what, count in counts.items()
        )

    def json(self) -> str:
        """The same as one JSON object."""
        return json.dumps(asdict(self), indent=1)


def convert(
    root: Path, interactions: Csv, items: Csv | None, *, time_format: str = ""
) -> Converted:
    """Writes `root/NAME.inter` and, with `items`, `root/NAME.item`; NAME is that of the folder.

    Of interactions these columns are read: user_id, item_id and, where there are any, timestamp and
    rating. All columns of items are: texts without markup and line breaks. Blanks around ids go.

    Args:
      time_format: of `datetime.strptime`; empty: times are seconds since 1970, or dates of ISO 8601
        such as 2024-03-31 18:05:00. A date without a zone is UTC.

    Raises:
      UserError: a file cannot be read; a column is missing; a cell is not what its column holds, of
        a time 1990 to 2100; or one of the files to be written is there already.
    """
    from mmsrec_jax.runtime.files import write  # imports jax, which input workers must not

    name = root.resolve().name
    paths = {kind: root / f"{name}.{kind}" for kind in ("inter", "item")}
    for path in paths.values():
        for taken in (path, path.with_name(f"{path.name}.gz")):
            if os.path.lexists(taken):
                raise UserError(f"{taken}: is there already; delete it or name another --out")
    written: dict[str, dict[str, int]] = {}

    def fill(kind: str, rows: Callable[[TextIO], Counter[str]], partial: Path) -> None:
        with partial.open("w", encoding="utf-8") as out:
            written[str(paths[kind])] = dict(rows(out))

    def write_interactions() -> None:
        make = functools.partial(
            fill, "inter", lambda out: _interactions(interactions, out, time_format)
        )
        write(paths["inter"], make)

    def fill_items(partial: Path) -> None:
        assert items is not None
        fill("item", lambda out: _items(items, out), partial)
        write_interactions()  # neither file appears when one of them is refused

    if items is None:
        write_interactions()
    else:
        write(paths["item"], fill_items)
    return Converted(written)


def parsed_columns(given: list[str], flag: str) -> dict[str, str]:
    """{"user_id": "customer"} of ["user_id=customer"]; UserError for what is not of this form."""
    found = {}
    for pair in given:
        ours, equals, theirs = pair.partition("=")
        ours = texts.plain(ours)
        if not (ours and equals and theirs.strip()):
            raise UserError(f"{flag}: {reading.shown(pair)} is not OURS=THEIRS: user_id=customer")
        if ours in found:
            raise UserError(f"{flag}: {ours} is named twice")
        found[ours] = theirs
    return found


def _interactions(csv: Csv, out: TextIO, time_format: str) -> Counter[str]:
    for ours in csv.columns:
        if ours not in _TYPES:
            raise UserError(f"--columns: {ours} is not one of {', '.join(_TYPES)}")
    names, rows = _open(csv, _NEEDED, "--columns", most=_TYPES)
    kept = [name for name in _TYPES if name in names]
    counts = Counter({"interactions": 0})
    if time_format and "timestamp" not in kept:
        raise UserError(
            f"--time_format={time_format}: no column of times is read; add "
            "--columns=timestamp=COLUMN"
        )
    print(*(f"{name}:{_TYPES[name]}" for name in kept), sep="\t", file=out)
    for where, row in rows:
        ids = [_id(where, row, name) for name in _NEEDED]
        if not all(ids):
            counts[_WITHOUT_IDS] += 1
            continue
        cells = list(ids)
        if "timestamp" in kept:
            cells.append(f"{_seconds(where, row['timestamp'], time_format):.15g}")
        if "rating" in kept:
            cells.append(f"{_number(where, 'rating', row['rating']):.15g}")
        print(*cells, sep="\t", file=out)
        counts["interactions"] += 1
    if "timestamp" not in kept:
        counts["of them without a time: the order of the file counts"] = counts["interactions"]
    return counts


def _items(csv: Csv, out: TextIO) -> Counter[str]:
    names, rows = _open(csv, ("item_id",), "--item_columns")
    others = [name for name in names if name != "item_id"]
    counts, seen = Counter({"items": 0}), set()
    print("item_id:token", *(f"{name}:token_seq" for name in others), sep="\t", file=out)
    for where, row in rows:
        id = _id(where, row, "item_id")
        if not id or id in seen:
            counts[_REPEATED if id else _WITHOUT_IDS] += 1
            continue
        seen.add(id)
        print(id, *(texts.plain(row[name]) for name in others), sep="\t", file=out)
        counts["items"] += 1
    return counts


def _open(
    csv: Csv, needed: tuple[str, ...], flag: str, most: Collection[str] | None = None
) -> tuple[list[str], Iterator[Row]]:
    """The columns of a file that are read, by our names, and its rows; `most`: no others are."""
    _, line = next(files.lines(csv.path, csv.encoding), (1, ""))
    separator = max(",;\t", key=line.count)
    rows = csv_items.records(csv.path, separator, csv.encoding, strict=True)
    _, header = next(rows, ("", []))
    names = _names(csv, header)
    for name in (*needed, *csv.columns):
        if name not in names:
            raise UserError(
                f"{csv.path}:1: no column {csv.columns.get(name, name)}; the header has "
                f"{', '.join(header)}: name the one to take, {flag}={name}=COLUMN"
            )
    read = [name for name in names if name and (most is None or name in most)]
    for name in read:
        if read.count(name) > 1:
            same = [theirs for theirs, ours in zip(header, names, strict=True) if ours == name]
            raise UserError(
                f"{csv.path}:1: {len(same)} columns would be {name}: "
                f"{', '.join(map(reading.shown, same))}; rename or remove all but one in the file"
            )

    def cells() -> Iterator[Row]:
        for where, row in rows:
            if len(row) != len(header):
                raise UserError(f"{where}: {len(row)} columns, the header has {len(header)}")
            yield where, dict(zip(names, row, strict=True))

    return read, cells()


def _names(csv: Csv, header: list[str]) -> list[str]:
    """Ours of each column, plain text; empty for one that has none or whose name is taken by the
    column that `csv.columns` gives it to."""
    ours = {theirs.strip(): ours for ours, theirs in csv.columns.items()}
    names = []
    for theirs in map(str.strip, header):
        plain = texts.plain(theirs)
        names.append(ours.get(theirs, "" if plain in csv.columns else plain))
    return names


def _id(where: str, row: Mapping[str, str], name: str) -> str:
    id = row[name].strip()
    if len(id) > LONGEST_ID or _CONTROL.search(id):
        raise UserError(
            f"{where}: {name} {reading.shown(id)} is no id: at most {LONGEST_ID} characters, no "
            "tabs and line breaks; is it another column?"
        )
    return id


def _number(where: str, name: str, text: str) -> float:
    try:
        return reading.number(text)
    except ValueError:
        raise UserError(f"{where}: {name} {reading.shown(text)} is not a number") from None


def _seconds(where: str, text: str, time_format: str) -> float:
    text = text.strip()
    seconds = _parsed_seconds(where, text, time_format)
    if not EARLIEST / 1000 <= seconds <= LATEST / 1000:
        raise UserError(
            f"{where}: timestamp {reading.shown(text)} is no time of 1990 to 2100 in seconds since "
            "1970; are columns swapped, or are these milliseconds, to be divided by 1,000, or "
            'dates, which need such as --time_format="%Y%m%d%H%M%S"?'
        )
    return seconds


def _parsed_seconds(where: str, text: str, time_format: str) -> float:
    try:
        if time_format:
            date = datetime.strptime(text, time_format)
        elif text.isdecimal() and len(text) == len("20240331"):
            raise ValueError("seconds or a date?")
        elif text.replace(".", "", 1).isdecimal():
            return reading.number(text)
        else:
            date = datetime.fromisoformat(text)
    except (ValueError, re.error):  # the second of a format that names something twice
        wanted = f"of the form {time_format}" if time_format else "seconds since 1970 or YYYY-MM-DD"
        raise UserError(
            f"{where}: timestamp {reading.shown(text)} is not {wanted}; say how the file writes "
            'times, such as --time_format="%d.%m.%Y %H:%M"'
        ) from None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
