"""Text from files and users, as a terminal may show it.

A terminal obeys control characters: a title could clear the screen, write to its own line of input
or hide what follows. Marks that turn the direction of writing show a name as another. All of them
become escapes as in JSON, so that printed JSON stays what it was.
"""

import re

_CONTROL = r"\x00-\x1f\x7f-\x9f"
_SURROGATES = r"\ud800-\udfff"  # undecodable bytes of a file name; no encoding can write them
_HIDDEN = r"\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # line ends, direction of writing
_STRANGE = re.compile(f"[{_CONTROL}{_SURROGATES}]")
_UNPRINTABLE = re.compile(f"[{_CONTROL}{_SURROGATES}{_HIDDEN}]")


def printable(text: str) -> str:
    """One line; what a terminal would obey is escaped, as in `\\u001b`, line ends too."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def printable_lines(text: str) -> str:
    """The same of a text of many lines, which stay lines."""
    return "\n".join(map(printable, text.split("\n")))


def shortened(text: str, longest: int = 800) -> str:
    """Text of at most so many characters: of longer ones the beginning and the end, which most
    often name the field and the remedy."""
    if len(text) <= longest:
        return text
    half = longest // 2 - 3
    return f"{text[:half]} ... {text[-half:]}"


def strange_character(text: str) -> str:
    """The first control character or half of a surrogate pair, which no name of a file, column or
    user needs; empty where there is none."""
    found = _STRANGE.search(text)
    return found[0] if found else ""
