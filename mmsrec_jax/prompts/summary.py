"""The form of a summary: what the image shows and what the text says, in one answer.

The separation is the paper's (MMSRARec, stage 1: against modality bias), the form is *ours*:

    image: keyword, keyword
    text: keyword, keyword

An item without an image may have the line of the text alone.
"""

import dataclasses
import re

_HEADER = re.compile(r"^\W*(image|text)\W*:\s*", re.IGNORECASE)
_SPECIAL = re.compile(r"<\|[^|<>]*\|>")
_BETWEEN_PHRASES = re.compile(r"[,;\n]|[.!?](?=\s|$)")
_EDGES = " \t\r\f\v.,;:!?\"'`*#-_()[]{}<>|/\\•"


@dataclasses.dataclass(frozen=True)
class Summary:
    """Keywords by source, in order and with repetitions.

    `well_formed`: exactly the two lines above, in this order, or the second alone, and no keyword
    twice.
    """

    image: list[str]
    text: list[str]
    well_formed: bool = True

    @property
    def keywords(self) -> list[str]:
        """All keywords, image first, each once (case does not count)."""
        first: dict[str, str] = {}
        for word in self.image + self.text:
            first.setdefault(word.lower(), word)
        return list(first.values())


def format_summary(image: list[str], text: list[str]) -> str:
    """The answer that `parse_summary` reads back."""
    return f"image: {', '.join(image)}".rstrip() + f"\ntext: {', '.join(text)}".rstrip()


def parse_summary(text: str) -> Summary:
    """Reads what a model wrote; never raises.

    Reading stops at the first special token. Keywords are divided by commas, semicolons or line
    ends and stripped of bullets, quotes and punctuation at their edges. Words before any header
    count as text. Whatever is left over makes the summary not well formed.
    """
    text = _SPECIAL.split(text, maxsplit=1)[0]
    found: dict[str, list[str]] = {"image": [], "text": []}
    section, headers, stray = "text", [], False
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            section = header.group(1).lower()
            headers.append(section)
            line = line[header.end() :]
        elif line.strip():
            stray = True
        for piece in re.split(r"[,;]", line):
            if word := " ".join(piece.strip(_EDGES).split()):
                found[section].append(word)
    words = [word.lower() for word in found["image"] + found["text"]]
    well_formed = (
        headers in (["image", "text"], ["text"])
        and not stray
        and bool(words)
        and len(set(words)) == len(words)
    )
    return Summary(found["image"], found["text"], well_formed)


def phrases(text: str) -> list[str]:
    """The phrases of a description, each once (case does not count), in order.

    They are divided by commas, semicolons, line ends and ends of sentences, and stripped of
    bullets, quotes and punctuation at their edges.
    """
    first: dict[str, str] = {}
    for piece in _BETWEEN_PHRASES.split(text):
        if phrase := " ".join(piece.strip(_EDGES).split()):
            first.setdefault(phrase.lower(), phrase)
    return list(first.values())
