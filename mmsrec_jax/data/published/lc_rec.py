"""Data sets in the layout of LC-Rec (Zheng et al.): NAME.inter.json and NAME.item.json.

Items of a user are in order, without times. The name of the data set is free: `lc_rec/Games`.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmsrec_jax.data.published import texts
from mmsrec_jax.data.published.files import File
from mmsrec_jax.data.published.rows import Notes, Rows
from mmsrec_jax.data.published.source import ItemRow, Source
from mmsrec_jax.data.records import LONGEST_ID
from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError

PUBLISHER = "lc_rec"
PAGE = "https://github.com/RUCAIBox/LC-Rec"
CONFIGS = re.compile(r"[A-Za-z0-9_-]+")

_ID = re.compile(f"[0-9]{{1,{LONGEST_ID}}}")


def source(config: str) -> Source:
    """The data set of a name."""
    return Source(
        PUBLISHER, config, PAGE, {"interactions": File((f"{config}.inter.json",))},
        rows=_rows,
        item_files=(File((f"{config}.item.json",)),),
        described=_items,
        fields=("title", "description", "brand", "categories"),
    )  # fmt: skip


def _rows(path: Path, *, notes: Notes) -> Iterator[Rows]:
    users: list[str] = []
    items: list[str] = []
    for user, history in _object(path).items():
        if not isinstance(history, list):
            raise UserError(f"{path}: user {reading.shown(user)} has no list of items")
        users += [_id(path, user)] * len(history)
        items += [_id(path, item) for item in history]
    yield Rows(_encoded(users), _encoded(items), times=None)


def _encoded(ids: list[str]) -> pa.DictionaryArray:
    return pa.array(ids, pa.string()).dictionary_encode()


def _id(path: Path, value: Any) -> str:
    """A user or an item is a whole number, or the same as text."""
    text = str(value) if type(value) is int else value
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise UserError(
            f"{path}: id {reading.shown(value)} is no whole number of at most {LONGEST_ID} digits"
        )
    return text


def _items(
    paths: Sequence[Path], wanted: Collection[str] | None, notes: Notes
) -> Iterator[ItemRow]:
    for id, value in _object(paths[0]).items():
        if not isinstance(value, dict):
            raise UserError(f"{paths[0]}: item {reading.shown(id)} has no fields")
        if wanted is None or id in wanted:
            text = texts.given(
                title=texts.plain(value.get("title")),
                description=texts.plain(value.get("description")),
                brand=texts.plain(value.get("brand")),
                categories=texts.plain(value.get("categories")),
            )
            yield ItemRow(_id(paths[0], id), text)


def _object(path: Path) -> dict[str, Any]:
    found = reading.read_json(path)
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path}: no JSON object, or an empty one")
    return found
