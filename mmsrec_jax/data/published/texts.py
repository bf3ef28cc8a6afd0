"""Texts of publishers made plain: no markup, no control characters, one line; and dict literals."""

import ast
import html
import re
from collections.abc import Iterable
from typing import Any

from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError, first_line

_TAG = re.compile(r"<[/!a-zA-Z][^<>]{0,2000}>")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def plain(value: Any) -> str:
    """Text without HTML entities, tags and control characters, spaces squeezed. Of a list its
    texts one after another; of anything that is no text nothing."""
    if isinstance(value, list):
        return " ".join(filter(None, map(plain, value)))
    if not isinstance(value, str):
        return ""
    text = _TAG.sub(" ", html.unescape(value))
    return " ".join(_CONTROL.sub(" ", text).split())


def joined(names: Iterable[Any]) -> str:
    """Names separated by ", ", each once; commas inside a name are dropped."""
    texts = (" ".join(plain(name).replace(",", " ").split()) for name in names)
    return ", ".join(dict.fromkeys(filter(None, texts)))


def given(**fields: str) -> dict[str, str]:
    """The fields that are not empty."""
    return {name: text for name, text in fields.items() if text}


def literal(text: str, where: str) -> Any:
    """The value of a Python literal; raises UserError that begins with `where`."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise UserError(
            f"{where}: no Python literal ({first_line(error)}); download or copy the file again"
        ) from None


def json_or_literal(text: str, where: str) -> Any:
    """The value of JSON, or of the Python literal that older copies of a file have instead."""
    try:
        return reading.parse_json(text, where)
    except UserError:
        return literal(text, where)
