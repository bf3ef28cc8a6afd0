"""What the three editions of the Amazon reviews have in common."""

import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from mmsrec_jax.data.published.files import lines
from mmsrec_jax.data.published.rows import Ids, Layout
from mmsrec_jax.data.published.source import ItemRow
from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError

USERS = Ids("^A[0-9A-Z]{9,}$", "an Amazon reviewer id, A and capitals or digits", strict=False)
ITEMS = Ids("^[0-9A-Z]{10}$", "an ASIN, ten capitals or digits", strict=False)
IN_SECONDS = Layout(USERS, ITEMS, ratings=(0, 5))
IN_MILLISECONDS = Layout(USERS, ITEMS, ratings=(0, 5), milliseconds=True)


def items(
    path: Path,
    key: str,
    parse: Callable[[str, str], Any],
    convert: Callable[[dict[str, Any]], ItemRow],
    wanted: Collection[str] | None,
) -> Iterator[ItemRow]:
    """The items of a metadata file, a line each.

    Args:
      key: field that holds the id.
      parse: (text of a line, file and line for messages) -> value.
      convert: value -> item; its id is `key`'s value.
      wanted: ids; lines of others are not parsed. None for all.

    Raises:
      UserError: a line that is no dict or has no id.
    """
    # As writers of JSON and of Python literals write the key and a plain id.
    found_ids = re.compile(rf"""["']{key}["']\s*:\s*["']([^"'\\]*)["']""").findall
    for number, line in lines(path):
        if wanted is not None:
            # Texts may hold what looks like an id: a line is passed over when none is wanted.
            ids = found_ids(line)
            if ids and not any(id in wanted for id in ids):
                continue
        where = f"{path}:{number}"
        value = parse(line, where)
        if not isinstance(value, dict):
            raise UserError(f"{where}: {reading.shown(value)} is no dict of an item")
        id = value.get(key)
        if not isinstance(id, str) or not id:
            raise UserError(f"{where}: {key} {reading.shown(id)} is no id in quotes")
        if wanted is not None and id not in wanted:
            continue
        yield convert(value)
