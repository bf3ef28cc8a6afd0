"""Texts of publishers made plain: no markup, no control characters, one line; and dict literals."""

import ast
import html
import re
from collections.abc import Iterable
from typing import Any

from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError, first_line

_TAG = re.compile(r"<[/!a-zA-Z][^<>]{0,2000}>")
_LONG_REFERENCE = re.compile(r"&#[xX]?[0-9a-fA-F]{20,};?")  # of no character
_LARGEST_AMOUNT = 1e12
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def plain(value: Any) -> str:
    """Text without HTML entities, tags and control characters, spaces squeezed. Of a list its
    texts one after another; of anything that is no text nothing."""
    if isinstance(value, list):
        return " ".join(filter(None, map(plain, value)))
    if not isinstance(value, str):
        return ""
    value = _LONG_REFERENCE.sub(" ", value)  # int() refuses thousands of digits
    text = _TAG.sub(" ", html.unescape(value))
    return " ".join(_CONTROL.sub(" ", text).split())


def joined(names: Iterable[Any]) -> str:
    """Names separated by ", ", each once; commas inside a name are dropped."""
    texts = (" ".join(plain(name).replace(",", " ").split()) for name in names)
    return ", ".join(dict.fromkeys(filter(None, texts)))


def amount(value: Any) -> str:
    """A price with two decimals; empty for what is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:.2f}" if is_number and 0 <= value <= _LARGEST_AMOUNT else ""


def given(**fields: str) -> dict[str, str]:
    """The fields that are not empty."""
    return {name: text for name, text in fields.items() if text}


def literal(text: str, where: str) -> Any:
    """The value of a Python literal; raises UserError that begins with `where`."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        reason = "not texts and numbers alone"
        if isinstance(error, SyntaxError):
            reason = first_line(ValueError(error.msg))
        elif isinstance(error, RecursionError | MemoryError):
            reason = "nested too deeply"
        raise UserError(
            f"{where}: no Python literal ({reason}); download or copy the file again"
        ) from None


def json_or_literal(text: str, where: str) -> Any:
    """The value of JSON, or of the Python literal that older copies of a file have instead."""
    try:
        return reading.parse_json(text, where)
    except UserError:
        return literal(text, where)
