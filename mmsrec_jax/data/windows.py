"""Sliding windows over histories (MLLM-SRec, *paper*: a window and a step), and gaps in time.

Windows end at fixed positions (*ours*): window k ends after the first (k + 1) * step interactions
and holds the last `window` of them. So what a window says does not depend on what is predicted: a
target at position p is told of the windows that end at or before p, none of which holds anything
at or after p, and fewer than `step` interactions lie between the last of them and p. A new
interaction changes no window and ends one at most.
"""

import dataclasses
from typing import TypeVar

import numpy as np

N = TypeVar("N", int, np.ndarray)

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
_UNITS = (
    ("year", 365.25 * DAY),
    ("month", 30.44 * DAY),
    ("week", 7 * DAY),
    ("day", DAY),
    ("hour", HOUR),
    ("minute", MINUTE),
)
_NUMBERS = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve",
)  # fmt: skip
WORDS = ("a", "moment", *_NUMBERS, *(f"{name}{s}" for name, _ in _UNITS for s in ("", "s")))
"""What `gap_words` says beside numbers."""


@dataclasses.dataclass(frozen=True)
class Windows:
    """Where windows are.

    A window may be read together with what was written of the one before it. Such chains begin
    anew every `chain` windows (*ours*): however long a history is, writing takes `chain` rounds, in
    each of which all users' texts are written at once, and a target needs few windows.

    Attributes:
      window: interactions of a window, at most.
      step: interactions between the ends of two windows, at most `window`.
      chain: windows of a chain, and the most that a target is told of.
    """

    window: int
    step: int
    chain: int

    def __post_init__(self) -> None:
        if not 1 <= self.step <= self.window or self.chain < 1:
            raise ValueError(f"{self}: 1 <= step <= window and chain >= 1 must hold")

    def count(self, position: N) -> N:
        """How many windows end at or before a position."""
        return position // self.step

    def span(self, index: int) -> tuple[int, int]:
        """First interaction of a window and the one after its last."""
        end = (index + 1) * self.step
        return max(0, end - self.window), end

    def round(self, index: N) -> N:
        """In which round a window is written, from 0: how many of its chain come before it."""
        return index % self.chain

    def previous(self, index: int) -> int | None:
        """The window that is written before it and read with it; None where a chain begins."""
        return index - 1 if self.round(index) else None

    def told(self, position: int) -> range:
        """The windows that a target at this position is told of, oldest first."""
        count = self.count(position)
        return range(max(0, count - self.chain), count)

    def profiled(self, position: int) -> int | None:
        """The window at whose end the profile was written that a target at this position is told
        of: profiles are written again when the number of windows has doubled (*ours*), so that a
        history costs few of them. None before the first window ends."""
        count = self.count(position)
        return (1 << (count.bit_length() - 1)) - 1 if count else None

    def profile_ends(self, targets: np.ndarray) -> np.ndarray:
        """int32[m, 2] (user, position), ascending: up to where the histories reach whose profiles
        targets int32[n, 2] (user, position) are told of (`profiled`)."""
        user, position = np.asarray(targets).reshape(-1, 2).astype(np.int64).T
        count = self.count(position)
        user, count = user[count > 0], count[count > 0]
        ends = self.step << np.floor(np.log2(count)).astype(np.int64)
        return np.unique(np.stack([user, ends], axis=1), axis=0).astype(np.int32)

    def needed(self, targets: np.ndarray) -> np.ndarray:
        """int32[m, 2] (user, window), ascending: what `told` gives for targets int32[n, 2] (user,
        position), and what is written before it in the same chains."""
        user, position = np.asarray(targets).reshape(-1, 2).astype(np.int64).T
        count = self.count(position)
        first = np.maximum(0, count - self.chain) // self.chain * self.chain
        window = first[:, None] + np.arange(2 * self.chain)
        there = window < count[:, None]
        rows = np.stack([np.broadcast_to(user[:, None], there.shape)[there], window[there]], axis=1)
        return np.unique(rows, axis=0).astype(np.int32).reshape(-1, 2)


def gap_words(seconds: float) -> str:
    """A gap in words, such as "two days", rounded to its largest unit."""
    for name, size in _UNITS:
        if seconds >= 0.75 * size:
            count = max(1, round(seconds / size))
            number = _NUMBERS[count - 1] if count <= len(_NUMBERS) else str(count)
            return f"{number} {name}{'s' if count > 1 else ''}"
    return "a moment"


def gap_days(seconds: float) -> str:
    """A gap as a number of days with two digits that count, such as "2.1"."""
    return f"{float(f'{seconds / DAY:.2g}'):g}"
