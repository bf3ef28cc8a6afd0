"""The list of what to fetch: an item id and a URL a line."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmsrec_jax.data.records import LONGEST_ID
from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError

_CHUNK = 1 << 16  # lines
_LONGEST_NAME = 240  # bytes of an id that names a file; file systems take 255 with the suffix


class Listed:
    """Items and their URLs, in columns: a list may have tens of millions of lines.

    items, urls: pyarrow strings [N]; lines: int64[N], where each stands in the file.
    """

    def __init__(self, items: pa.Array, urls: pa.Array, lines: np.ndarray):
        self.items, self.urls, self.lines = items, urls, lines

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[str, str]:
        return self.items[i].as_py(), self.urls[i].as_py()

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for start in range(0, len(self), _CHUNK):
            items, urls = self.items.slice(start, _CHUNK), self.urls.slice(start, _CHUNK)
            yield from zip(items.to_pylist(), urls.to_pylist(), strict=True)


def read(path: Path) -> Listed:
    """The lines `<item id><tab><URL>`, or `{"item_id": ..., "url": ...}` in a file whose name ends
    with .jsonl; empty lines are passed over.

    Raises:
      UserError: no such file, a line that is neither, an id twice.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; give lines of an item id, a tab and a URL")
    listed = _columns(_of_json(path) if path.suffix == ".jsonl" else _of_text(path))
    if not len(listed):
        raise UserError(f"{path}: names no items; give lines of an item id, a tab and a URL")
    _check_unique(listed, path)
    return listed


def of_pairs(pairs: Iterable[tuple[str, str]]) -> Listed:
    """The same of (item id, URL), of which the first of each item counts."""
    seen: set[str] = set()

    def firsts() -> Iterator[tuple[int, str, str]]:
        for number, (item, url) in enumerate(pairs, 1):
            if item not in seen:
                seen.add(item)
                yield number, item, url

    return _columns(firsts())


def file_name(item: str) -> str:
    """What the picture of an item is called.

    Raises:
      ValueError: the id can name no file.
    """
    if not item.strip("."):
        raise ValueError("an item id of dots alone, which can name no file")
    if "/" in item or "\0" in item:
        raise ValueError("an item id with a slash, which can name no file")
    if len(item.encode()) > _LONGEST_NAME:
        raise ValueError(f"an item id of more than {_LONGEST_NAME} bytes, which can name no file")
    return f"{item}.jpg"


def _columns(rows: Iterator[tuple[int, str, str]]) -> Listed:
    """rows: line, item and URL."""
    kind = pa.large_string()
    chunks = [(pa.array([], kind), pa.array([], kind), np.zeros(0, np.int64))]
    while chunk := [row for _, row in zip(range(_CHUNK), rows, strict=False)]:
        numbers, items, urls = zip(*chunk, strict=True)
        chunks.append((pa.array(items, kind), pa.array(urls, kind), np.asarray(numbers)))
    all_items, all_urls, lines = zip(*chunks, strict=True)
    return Listed(pa.concat_arrays(all_items), pa.concat_arrays(all_urls), np.concatenate(lines))


def _of_text(path: Path) -> Iterator[tuple[int, str, str]]:
    with reading.open_regular(path) as file:
        number = 0
        while raw := file.readline(reading.LONGEST_LINE + 1):
            number += 1
            where = f"{path}:{number}"
            if len(raw) > reading.LONGEST_LINE:
                raise UserError(f"{where}: longer than {reading.LONGEST_LINE:,} bytes; shorten it")
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                raise UserError(f"{where}: not UTF-8; convert the file") from None
            if not line.strip():
                continue
            cells = line.split("\t")
            if len(cells) != 2:
                raise UserError(
                    f"{where}: {len(cells)} columns; write an item id, one tab and a URL"
                )
            yield number, _checked(cells[0], where), cells[1].strip()


def _of_json(path: Path) -> Iterator[tuple[int, str, str]]:
    for where, value in reading.json_lines(path):
        item, url = (value.get(name) if isinstance(value, dict) else None for name in _FIELDS)
        if not isinstance(item, str) or not isinstance(url, str):
            raise UserError(f'{where}: write {{"item_id": "...", "url": "..."}}')
        yield int(where.rpartition(" ")[2]), _checked(item, where), url.strip()


_FIELDS = ("item_id", "url")


def _checked(item: str, where: str) -> str:
    if not item or len(item) > LONGEST_ID:
        raise UserError(f"{where}: the item id is empty or has more than {LONGEST_ID} characters")
    return item


def _check_unique(listed: Listed, path: Path) -> None:
    if pc.count_distinct(listed.items).as_py() == len(listed):
        return
    first: dict[str, int] = {}
    for i, (item, _) in enumerate(listed):
        if item in first:
            lines = f"lines {listed.lines[first[item]]} and {listed.lines[i]}"
            raise UserError(f"{path}: item {item!r} stands twice ({lines}); leave one of them")
        first[item] = i
