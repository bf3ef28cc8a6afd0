"""HTML that is escaped where it is made: a plain `str` is text, only `Html` is markup.

`element("p", "1 < 2 ", element("b", "yes"), class_="note")` is
`<p class="note">1 &lt; 2 <b>yes</b></p>`.
"""

import html
from collections.abc import Iterable

from mmsrec_jax.runtime.printable import printable_lines, shortened

_VOID = {"br", "col", "hr", "img", "input", "link", "meta"}


class Html(str):
    """Markup, made by the functions of this module."""

    __slots__ = ()


class Exact(str):
    """The value of a field that a form sends back as it is, also where it cannot be shown."""

    __slots__ = ()


Content = str | int | None | Iterable["Content"]
Attribute = str | int | float | bool | None


def element(name: str, /, *content: Content, **attributes: Attribute) -> Html:
    """`<name attributes>content</name>`.

    content: see `joined`. attributes: `class_` is `class`, `aria_label` is `aria-label`; True
    stands alone; None and False are left out; values are escaped.
    """
    told = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{_escaped(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Html(f"<{name}{told}>")
    return Html(f"<{name}{told}>{joined(content)}</{name}>")


def joined(*content: Content) -> Html:
    """Pieces one after the other: `Html` as it is, other text escaped, None and nested sequences
    flattened."""
    return Html("".join(_pieces(content)))


def clipped(text: str, longest: int) -> str:
    """Text of at most so many characters; of longer ones the beginning and the end."""
    return shortened(" ".join(text.split()), longest)


def _pieces(content: Content) -> Iterable[str]:
    if content is None:
        return
    if isinstance(content, Html):
        yield content
    elif isinstance(content, str | int):
        yield _escaped(content)
    else:
        for piece in content:
            yield from _pieces(piece)


def _escaped(value: Attribute) -> str:
    if isinstance(value, Exact):
        return html.escape(value, quote=True)
    # A browser obeys marks of writing direction, and no encoding can write half a surrogate pair.
    return html.escape(printable_lines(str(value)), quote=True)
