"""The opening of a recommendation prompt: named sections, and what is left out when room is short.

A method lists its sections in the order in which the model reads them; each says how its entries
stand and which of them goes first. `fit` knows none of them.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

from mmsrec_jax.prompts.chat import Piece
from mmsrec_jax.prompts.templates import Templates

Drop = Callable[[Sequence[str]], int]  # entries that are left -> which of them goes next


def first(entries: Sequence[str]) -> int:
    """The first entry goes first: the oldest of a history."""
    del entries
    return 0


def last(entries: Sequence[str]) -> int:
    """The last entry goes first: the least similar, or the least important one."""
    return len(entries) - 1


@dataclasses.dataclass(frozen=True)
class Section:
    """One part of a prompt's opening; nothing is written of it when it has no entries.

    Attributes:
      name: what is left out is counted as `<name>_left_out`.
      template: the section, with `{items}` for its entries.
      entry: an entry, with `{words}`.
      separator: between two entries.
      entries: in the order in which they are shown.
      drop: which entry goes first when room is short.
      keep: so many entries stay until no section has more than it keeps.
      priority: sections of a lower one lose their entries first; the order of the list decides
        between equal ones.
    """

    name: str
    template: str
    entry: str
    separator: str
    entries: tuple[str, ...]
    drop: Drop = last
    keep: int = 0
    priority: int = 0

    def text(self) -> str:
        if not self.entries:
            return ""
        lines = (self.entry.format(words=words) for words in self.entries)
        return self.template.format(items=self.separator.join(lines))

    def prefixes(self) -> list[str]:
        """The text up to the end of each entry."""
        opening = self.template.partition("{items}")[0]
        lines = [self.entry.format(words=words) for words in self.entries]
        return [opening + self.separator.join(lines[:count]) for count in range(1, len(lines) + 1)]

    def shortened(self) -> "Section":
        """Without the entry that goes next."""
        at = self.drop(self.entries)
        return dataclasses.replace(self, entries=self.entries[:at] + self.entries[at + 1 :])


def history(templates: Templates, entries: Sequence[str]) -> Section:
    """Words of the user's last items, oldest first (paper, stage 3). The oldest go first, and the
    latest one stays longest (*ours*)."""
    return Section(
        "history",
        templates.history,
        templates.item_line,
        templates.item_separator,
        tuple(entries),
        drop=first,
        keep=1,
    )


def similar(templates: Templates, entries: Sequence[str]) -> Section:
    """Words of what similar users chose next, most similar first (paper, stage 3). The least
    similar go first (*ours*)."""
    return Section(
        "similar",
        templates.similar,
        templates.item_line,
        templates.item_separator,
        tuple(entries),
    )


def aggregated(templates: Templates, keywords: Sequence[tuple[str, int]]) -> Section:
    """`similar` by keywords, each with the number of users that it is of, most first (*ours*). The
    rarest go first."""
    return Section(
        "similar",
        templates.aggregated,
        " {words}",
        ",",
        tuple(f"{word} {count}" for word, count in keywords),
    )


def render(sections: Sequence[Section]) -> str:
    """Their text, one after the other."""
    return "".join(section.text() for section in sections)


def fit(
    sections: Sequence[Section], encode: Callable[[str], Piece], room: int, counts: Counter
) -> Piece:
    """`encode(render(sections))` in at most `room` tokens, as far as leaving out entries can do it.

    Rule (*ours*): in the order of their priority, sections lose entries down to those they keep;
    if that is not enough, they lose the others in the same order. One entry goes at a time and is
    counted under its section's name.
    """
    return fitted(sections, encode, room, counts)[0]


def fitted(
    sections: Sequence[Section], encode: Callable[[str], Piece], room: int, counts: Counter
) -> tuple[Piece, list[Section]]:
    """`fit`, and the sections as they are shown."""
    shown = list(sections)
    order = sorted(range(len(shown)), key=lambda s: shown[s].priority)
    while True:
        piece = encode(render(shown))
        if len(piece) <= room:
            return piece, shown
        above = [s for s in order if len(shown[s].entries) > shown[s].keep]
        left = above or [s for s in order if shown[s].entries]
        if not left:
            return piece, shown
        counts[f"{shown[left[0]].name}_left_out"] += 1
        shown[left[0]] = shown[left[0]].shortened()
