"""New items as lines of JSON: `{"id": "n1", "title": "oak lamp", "image": "n1.jpg"}`."""

from pathlib import Path
from typing import Any

from mmsrec_jax.data import images
from mmsrec_jax.data.records import LONGEST_ID, Item
from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError


def read(path: Path) -> list[Item]:
    """The items of a file, one a line; empty lines are passed over.

    Fields: "id"; "image", the path of a picture from the file's folder on, and "category", both of
    which may be absent; any other field is a text of the item, such as "title".

    Raises:
      UserError: names the line: no JSON, a field of the wrong type, no id, no text, an id that
        stands twice, or a picture that cannot be read.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; give one JSON object a line, a new item each")
    items: dict[str, Item] = {}
    for where, value in reading.json_lines(path):
        item = _item(_fields(value, where), path.parent, where)
        if item.id in items:
            raise UserError(f"{where}: the id {item.id!r} stands above; name each item once")
        items[item.id] = item
    if not items:
        raise UserError(f"{path}: holds no items; give one JSON object a line")
    return list(items.values())


def _fields(found: Any, where: str) -> dict[str, str]:
    if not isinstance(found, dict):
        raise UserError(f'{where}: not an object; write {{"id": ..., "title": ...}}')
    for name, value in found.items():
        if not isinstance(value, str):
            said = reading.shown(value)
            raise UserError(f"{where}: {reading.shown(name)} is {said}; write text in quotes")
    return {name: value.strip() for name, value in found.items() if value.strip()}


def _item(fields: dict[str, str], folder: Path, where: str) -> Item:
    id, image = fields.pop("id", ""), fields.pop("image", "")
    category = fields.pop("category", None)
    if not id:
        raise UserError(f"{where}: the item has no id")
    if len(id) > LONGEST_ID or "\0" in id:
        raise UserError(
            f"{where}: the id has a NUL character or more than {LONGEST_ID} characters; correct it"
        )
    if not fields:
        raise UserError(f"{where}: item {id!r} has no text; give it a title at least")
    return Item(id, fields, _picture(folder, image, where) if image else None, category)


def _picture(folder: Path, name: str, where: str) -> bytes:
    path = folder / name
    try:
        data = reading.read_bytes(path, most=images.LARGEST_FILE, within=folder)
    except UserError as error:
        raise UserError(f"{where}: no picture: {error}") from None
    try:
        images.decode(data)
    except images.ImageError as error:
        raise UserError(f"{where}: the picture {path} cannot be read: {error}") from error
    return data
