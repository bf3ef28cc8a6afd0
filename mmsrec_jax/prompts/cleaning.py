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


_PASSES = 4  # a text that is not clean after these was made to last


class Cleaner:
    """Takes special tokens and role words out of texts. Picklable.

    Args:
      special: the tokenizer's special tokens.
      turns: what the chat template writes between questions and answers.
      marks: private characters with a meaning of our own.
    """

    def __init__(self, special: Collection[str], turns: Sequence[str], marks: str):
        self._marks = re.compile(f"[{re.escape(marks)}]")
        self._forged = _any_of(special, role_words(turns, special))

    def clean(self, text: str) -> str:
        """`text` on one line, without special tokens, role words and control characters."""
        text = self._marks.sub("", text)
        if not text.isascii():
            # Some tokenizers read a wide or a composed character as the plain one.
            plain = _plain(text)
            if self._forged.search(plain) and plain != text:
                text = plain
        text = _one_line(self._without(_CONTROL.sub("", text)))
        return _one_line(self._without(text))  # words may stand side by side only now

    def without_forged(self, text: str) -> str:
        """`text` without special tokens and role words, all else as it is."""
        return self._without(text)

    def _without(self, text: str) -> str:
        for _ in range(_PASSES):
            # A blank, so that what stood around it does not become another one.
            text, found = self._forged.subn(" ", text)
            if not found:
                return text
        return bare(text)


def bare(text: str) -> str:
    """The words of a text and nothing else: what has another sign in it cannot be put together."""
    return " ".join(_WORD.findall(text))


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


def _any_of(special: Collection[str], roles: Collection[str] = ()) -> re.Pattern[str]:
    """Matches special tokens wherever they stand, and role words; in any case unless a token is a
    plain word."""
    patterns = {word: _of_special(word) for word in special if word.strip()}
    patterns |= {word: _of_role(word) for word in roles}
    longest_first = sorted(patterns, key=len)[::-1]
    return re.compile("|".join(patterns[word] for word in longest_first) or r"(?!)", re.IGNORECASE)


def _of_special(word: str) -> str:
    return f"(?-i:{re.escape(word)})" if _WORD.fullmatch(word) else re.escape(word)


def _of_role(word: str) -> str:
    """A plain word stands alone; one with signs may be inside another, with blanks before a last
    colon."""
    if _WORD.fullmatch(word):
        return rf"(?<!\w){re.escape(word)}(?!\w)"
    return re.escape(word[:-1]) + r"\s*:" if word.endswith(":") else re.escape(word)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _plain(text: str) -> str:
    """With characters that look alike made one, and without invisible ones."""
    shown = (c for c in text if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFKC", "".join(shown))
