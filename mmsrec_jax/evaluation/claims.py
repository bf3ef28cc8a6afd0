"""What texts claim of items, each claim checked against what is known of them (*ours*).

A text is cut into phrases, and a phrase into claims: each wording of an attribute's value in it is
a claim of that value, and words that stand between such wordings are one claim of themselves. A
claim is

- supported: an item has the value, or its texts say the words;
- contradicted: it is not supported, and of this attribute the items are known to have others;
- unsupported: nothing is known either way.

On the toyshop values and wordings are those of the generator, so that a paraphrase counts as what
it means and what is known is the truth. On real data values are the words of the catalog's
attributes. What a text denies ("not red") counts as claimed.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmsrec_jax.data.records import Catalog
from mmsrec_jax.data.toyshop import World
from mmsrec_jax.data.toyshop_items import VALUES, WORDINGS
from mmsrec_jax.prompts.summary import phrases

SUPPORTED, UNSUPPORTED, CONTRADICTED = OUTCOMES = ("supported", "unsupported", "contradicted")
OTHER = ""  # the attribute of a claim that names none

_WORD = re.compile(r"[^\W_]+")
_FUNCTION_WORDS = frozenset(
    "a an and are as at be by can for from has have in is it its made of on or s that the their "
    "there this to very which with you your item items product products".split()
)


_Meaning = tuple[str, str]  # attribute, value
_Part = tuple[Sequence[str], Sequence[_Meaning]]  # words of a phrase, what they may mean


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim of a text.

    Attributes:
      words: as the text has them, in lower case and without function words.
      attribute, value: what they claim; both empty for words that name no attribute's value.
      outcome: one of `OUTCOMES`.
    """

    words: str
    attribute: str
    value: str
    outcome: str


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of an item or of several.

    Attributes:
      values: attribute -> its values.
      words: of their texts and categories.
    """

    values: Mapping[str, frozenset[str]]
    words: frozenset[str]


class Checker:
    """Claims of texts about the items of a catalog.

    Args:
      world: the generating model of a toyshop, None for real data.
      fixed: sentences around what is claimed, such as those of a chain of thought; their words
        claim nothing unless they are an attribute's value.
    """

    def __init__(self, catalog: Catalog, world: World | None = None, fixed: Sequence[str] = ()):
        self._catalog, self._world = catalog, world
        self._fixed = {word for text in fixed for word in words_of(text)}
        if world is None:
            self.wordings: Mapping[str, Mapping[str, Sequence[str]]] = _of_catalog(catalog)
        else:
            self.wordings = WORDINGS
        self._meanings: dict[tuple[str, ...], list[_Meaning]] = {}
        for attribute, values in self.wordings.items():
            for value, said in values.items():
                for wording in dict.fromkeys((value, *said)):
                    means = self._meanings.setdefault(tuple(words_of(wording)), [])
                    means.append((attribute, value))
        self._longest = max(map(len, self._meanings), default=0)
        self._known: dict[int, Facts] = {}

    def check(self, text: str, items: Sequence[int]) -> list[Claim]:
        """The claims of a text that is about these items, of which one bears out a claim."""
        facts = self.facts(items)
        found = []
        for phrase in phrases(text):
            for words, meanings in self._parts(words_of(phrase)):
                found.append(_checked(words, meanings, facts))
        return found

    def facts(self, items: Sequence[int]) -> Facts:
        """What is known of one item, or of any of several."""
        each = [self._facts(int(item)) for item in items]
        if len(each) == 1:
            return each[0]
        attributes = {name for one in each for name in one.values}
        return Facts(
            {
                name: frozenset().union(*(one.values.get(name, ()) for one in each))
                for name in attributes
            },
            frozenset().union(*(one.words for one in each)),
        )

    def stated(self, item: int) -> list[tuple[str, str]]:
        """(attribute, value) of all that the catalog states of an item."""
        return [
            (name, value)
            for name, said in self._catalog[item].attributes.items()
            for value in ((said,) if self._world is not None else words_of(said))
        ]

    def _facts(self, item: int) -> Facts:
        if item not in self._known:
            self._known[item] = self._read(item)
        return self._known[item]

    def _read(self, item: int) -> Facts:
        shown = self._catalog[item]
        texts = (*shown.text.values(), shown.category or "")
        words = frozenset(word for text in texts for word in words_of(text))
        if self._world is not None:
            known = self._world.attributes
            return Facts(
                {name: frozenset([VALUES[name][known[name][item]]]) for name in known}, words
            )
        named = {name: frozenset(words_of(said)) for name, said in shown.attributes.items()}
        return Facts({name: values for name, values in named.items() if values}, words)

    def _parts(self, words: Sequence[str]) -> Iterator[_Part]:
        """Wordings, the longest first, with what they may mean, and the words between them."""
        start = end = 0
        while end < len(words):
            size = next(
                (
                    size
                    for size in range(min(self._longest, len(words) - end), 0, -1)
                    if tuple(words[end : end + size]) in self._meanings
                ),
                0,
            )
            if not size:
                end += 1
                continue
            yield from self._between(words[start:end])
            yield words[end : end + size], self._meanings[tuple(words[end : end + size])]
            start = end = end + size
        yield from self._between(words[start:end])

    def _between(self, words: Sequence[str]) -> Iterator[_Part]:
        if claiming := [word for word in words if word not in self._fixed]:
            yield claiming, []


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without function words."""
    return [word for word in _WORD.findall(text.lower()) if word not in _FUNCTION_WORDS]


def shares(
    found: Iterable[Sequence[Claim]], stated: Iterable[Sequence[tuple[str, str]]]
) -> dict[str, Any]:
    """What of the claims of many texts is borne out.

    Args:
      found: the claims of each text.
      stated: aligned, the (attribute, value) that the catalog states of its item.

    Returns:
      "texts" and "claims", how many there are; of the claims the share of each outcome, of the
      stated values "told", the share that a supported claim of their text names; None where there
      is nothing to share. The same by attribute in "by_attribute", without "texts".
    """
    outcomes: Counter[tuple[str, str]] = Counter()
    told: Counter[str] = Counter()
    known: Counter[str] = Counter()
    texts = 0
    for claims, values in zip(found, stated, strict=True):
        texts += 1
        outcomes.update((claim.attribute, claim.outcome) for claim in claims)
        right = {(c.attribute, c.value) for c in claims if c.outcome == SUPPORTED}
        known.update(name for name, _ in values)
        told.update(name for name, value in values if (name, value) in right)
    names = sorted({name for name, _ in outcomes} | set(known))
    by_attribute = {
        name or "other": _shares({o: outcomes[name, o] for o in OUTCOMES}, told[name], known[name])
        for name in names
    }
    total = {o: sum(outcomes[name, o] for name in names) for o in OUTCOMES}
    whole = _shares(total, told.total(), known.total())
    return {"texts": texts, **whole, "by_attribute": by_attribute}


def table(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """`shares` of several sets of texts by name, as text with one line each and, below the first,
    one an attribute."""
    rows: list[tuple[str, ...]] = [("", "texts", "claims", *OUTCOMES, "told")]
    for place, (name, part) in enumerate(parts.items()):
        rows.append((name, str(part["texts"]), *_cells(part)))
        if place == 0:
            rows += [
                (f"  {attribute}", "", *_cells(one))
                for attribute, one in part["by_attribute"].items()
            ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    )
    return "\n".join(lines) + "\n"


def _cells(part: Mapping[str, Any]) -> list[str]:
    values = [part[name] for name in (*OUTCOMES, "told")]
    return [str(part["claims"]), *("-" if value is None else f"{value:.4f}" for value in values)]


def _shares(outcomes: Mapping[str, int], told: int, known: int) -> dict[str, Any]:
    claims = sum(outcomes.values())
    found = {name: count / claims if claims else None for name, count in outcomes.items()}
    return {"claims": claims, **found, "told": told / known if known else None}


def _checked(words: Sequence[str], meanings: Sequence[_Meaning], facts: Facts) -> Claim:
    attribute, value = meanings[0] if meanings else (OTHER, "")
    outcome = UNSUPPORTED
    for name, meant in meanings:
        if meant in facts.values.get(name, ()):
            attribute, value, outcome = name, meant, SUPPORTED
            break
    else:
        if facts.words.issuperset(words):
            outcome = SUPPORTED
        elif meanings and all(name in facts.values for name, _ in meanings):
            outcome = CONTRADICTED
    return Claim(" ".join(words), attribute, value, outcome)


def _of_catalog(catalog: Catalog) -> dict[str, dict[str, tuple[str, ...]]]:
    """Attribute -> word of its values -> itself, over all items."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for item in catalog:
        for name, said in item.attributes.items():
            for word in words_of(said):
                found.setdefault(name, {})[word] = (word,)
    return found
