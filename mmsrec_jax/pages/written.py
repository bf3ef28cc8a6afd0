"""What models wrote of items and users, for the few that a page shows.

The files have a line for every item or user, millions perhaps. A line is parsed when the number or
name that it begins with is wanted, and no more than `MOST_BYTES` of a file are read.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmsrec_jax.runtime import reading

MOST_BYTES = 1 << 28
_MARKS = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>")  # how tokenizers write where a text ends
_ITEM = re.compile(rb'\{"item": (\d{1,10})[,}]')
_USER = re.compile(rb'\{"user": ("(?:[^"\\]|\\.)*")')


@dataclass
class About:
    """What was written of one item.

    Attributes:
      image, text: keywords of MMSRARec, of the picture and of the text.
      summary: keywords of MLLM-SRec.
      answers: (what was asked, answer) of MLLM-SRec.
      claims: (words, outcome), where claims were checked and the item is among the examples.
      rewards: of the keywords by name, where the item is among those that were scored.
    """

    image: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)
    answers: list[tuple[str, str]] = field(default_factory=list)
    claims: list[tuple[str, str]] = field(default_factory=list)
    rewards: dict[str, float] = field(default_factory=dict)

    @property
    def keywords(self) -> list[str]:
        """All keywords, each once."""
        return list(dict.fromkeys([*self.image, *self.text, *self.summary]))


def of_items(workdir: Path, wanted: Collection[int], done: Collection[str]) -> dict[int, About]:
    """Item -> what was written of it, for those of `wanted` of which something was.

    done: steps whose files are read: those of others may be of other data.

    Raises:
      UserError: a line is damaged.
    """
    found: dict[int, About] = {}

    def lines(step: str, file: str) -> Iterator[tuple[About, Mapping[str, Any]]]:
        for row in _item_rows(workdir / step / file, wanted) if step in done else ():
            yield found.setdefault(row["item"], About()), row

    for about, row in lines("summaries", "summaries.jsonl"):
        about.image, about.text = _words(row.get("image")), _words(row.get("text"))
    for about, row in lines("summaries", "rewards.jsonl"):
        about.rewards = {str(name): float(value) for name, value in row["rewards"].items()}
    for about, row in lines("item_texts", "summaries.jsonl"):
        about.summary = _words(clean(str(row.get("summary", ""))).split(","))
    for about, row in lines("visual_answers", "answers.jsonl"):
        about.answers.append((str(row.get("question", "")), clean(str(row.get("answer", "")))))
    for about, row in lines("claims", "examples.jsonl"):
        about.claims = [(str(c["words"]), str(c["outcome"])) for c in row.get("claims", [])]
    return found


def examples(workdir: Path, most: int, done: Collection[str]) -> list[int]:
    """At most so many items of which step `claims` kept an example or, without that step, of which
    step `summaries` scored the keywords; evenly spread. done: as of `of_items`."""
    for step, file in (("claims", "examples.jsonl"), ("summaries", "rewards.jsonl")):
        if step in done:
            lines = _lines(workdir / step / file)
            found = [int(begins[1]) for line in lines if (begins := _ITEM.match(line))]
            count = min(most, len(found))
            return [found[place * len(found) // count] for place in range(count)]
    return []


def of_users(
    workdir: Path, wanted: Collection[str], done: Collection[str]
) -> dict[str, dict[str, str]]:
    """Raw id -> {"profile": ..., "preference": ...}, the latest that was written of each user.

    done: as of `of_items`, which says what is raised too.
    """
    found: dict[str, dict[str, str]] = {}
    for kind, step in (("profile", "profiles"), ("preference", "preferences")):
        if step not in done:
            continue
        path = workdir / step / f"{step}.jsonl"
        latest: dict[str, int] = {}
        for line in _lines(path):
            begins = _USER.match(line)
            if begins is None or json.loads(begins[1]) not in wanted:
                continue
            row = _parsed(path, line)
            user, window = row["user"], int(row.get("window", 0))
            if window >= latest.get(user, 0):
                latest[user] = window
                found.setdefault(user, {})[kind] = clean(str(row.get("written", "")))
    return found


def clean(text: str) -> str:
    """A model's text on one line, without the marks of where it ended."""
    return " ".join(_MARKS.sub(" ", text).split())


def _item_rows(path: Path, wanted: Collection[int]) -> Iterator[dict[str, Any]]:
    for line in _lines(path):
        if (begins := _ITEM.match(line)) and int(begins[1]) in wanted:
            yield _parsed(path, line)


def _parsed(path: Path, line: bytes) -> dict[str, Any]:
    return reading.parse_json(line.decode(errors="replace"), str(path))


def _lines(path: Path) -> Iterator[bytes]:
    """The whole lines of a file within its first `MOST_BYTES`; none where there is no file."""
    if not path.is_file():
        return
    left = MOST_BYTES
    with path.open("rb") as file:
        while left > 0 and (line := file.readline(left)).endswith(b"\n"):
            left -= len(line)
            yield line


def _words(found: Any) -> list[str]:
    words = found if isinstance(found, list) else []
    return [word for word in (str(word).strip() for word in words) if word]
