"""Texts of items and users without what could end their turn: nothing in them is an instruction.

Two things tell a model whose turn it is: special tokens, and role words that are plain text in some
chat templates (`USER:`, `[/INST]`). Neither survives in a text that is shown to the model.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence

_MARKED = re.compile(r"(?=\S*\w)(?=\S*[^\w\s])\S+")  # a word with a letter and with another sign
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
_WORD = re.compile(r"\w+")


class Cleaner:
    """Takes special tokens and role words out of texts. Picklable.

    Args:
      special: the tokenizer's special tokens.
      turns: what the chat template writes between questions and answers.
      marks: private characters with a meaning of our own.
    """

    def __init__(self, special: Collection[str], turns: Sequence[str], marks: str):
        self._marks = re.compile(f"[{re.escape(marks)}]")
        self._forged = _any_of([*special, *role_words(turns, special)])

    def clean(self, text: str) -> str:
        """`text` on one line, without special tokens, role words and control characters."""
        text = self._marks.sub("", text)
        if not text.isascii():
            # Some tokenizers read a wide or a composed character as the plain one.
            plain = _plain(text)
            if self._forged.search(plain) and plain != text:
                text = plain
        text = self._without(self._forged, text)
        text = " ".join(_CONTROL.sub("", text).split())
        return self._without(self._forged, text).strip()

    def without_forged(self, text: str) -> str:
        """`text` without special tokens and role words, all else as it is."""
        return self._without(self._forged, text)

    @staticmethod
    def _without(pattern: re.Pattern[str], text: str) -> str:
        while (cleaned := pattern.sub("", text)) != text:
            text = cleaned
        return text


def role_words(turns: Sequence[str], special: Collection[str]) -> set[str]:
    """The words of `turns` by which a model tells whose turn it is, beside the special tokens.

    Those with a sign that words do not have, such as a colon or a bracket. A plain word ("user")
    counts only in a template whose turns have neither such words nor special tokens: elsewhere it
    says nothing without the token beside it, and items have it too.
    """
    pattern, found = _any_of(special), set()
    for turn in turns:
        rest = pattern.sub(" ", turn)
        marked = {word for word in rest.split() if _MARKED.fullmatch(word)}
        if not marked and not pattern.search(turn):
            marked = set(_WORD.findall(rest)) or set(rest.split())
        found |= marked
    return found


def _any_of(words: Collection[str]) -> re.Pattern[str]:
    """Matches each of them in any case, with blanks before a last colon."""
    longest_first = sorted({word for word in words if word.strip()}, key=len)[::-1]
    return re.compile("|".join(map(_loose, longest_first)) or r"(?!)", re.IGNORECASE)


def _loose(word: str) -> str:
    pattern = re.escape(word)
    if word.endswith(":"):
        pattern = re.escape(word[:-1]) + r"\s*:"
    if word[0].isalnum():
        pattern = r"(?<!\w)" + pattern
    if word[-1].isalnum():
        pattern += r"(?!\w)"
    return pattern


def _plain(text: str) -> str:
    """With characters that look alike made one, and without invisible ones."""
    shown = (c for c in text if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFKC", "".join(shown))
