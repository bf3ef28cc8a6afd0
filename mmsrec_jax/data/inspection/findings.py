"""What is wrong with a data set, one line each, and what is only worth knowing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

_SHOWN = 5  # of one kind


@dataclass(frozen=True)
class Finding:
    """where: file and line, or user and item. what: the problem. remedy: what to do."""

    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


@dataclass
class Findings:
    """problems: what should be put right. notes: what is in order for some purposes."""

    problems: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)

    def several(
        self, found: Sequence[Finding], total: int, *, are_problems: bool, kind: str
    ) -> None:
        """Adds the first of one kind, and a last one that says how many more there are."""
        into = self.problems if are_problems else self.notes
        into += found[:_SHOWN]
        if total > (shown := len(found[:_SHOWN])):
            where = found[0].where.partition(":")[0] if found else "data"
            into.append(Finding(where, f"{total - shown:,} more {kind}", "the same holds for them"))

    def lines(self) -> Iterator[str]:
        """For the screen: problems, then notes."""
        yield from map(str, self.problems)
        yield from (f"note: {note}" for note in self.notes)


def first(rows: np.ndarray) -> list[int]:
    """The first few of ascending rows, as many as are shown."""
    return [int(row) for row in rows[:_SHOWN]]
