"""Progress lines with rate and time left, for anything that takes longer than a few seconds."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from absl import logging


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def number(value: float) -> str:
    """A metric in at most five characters or so: 0.1234, 12.34, 1.2e-05."""
    value = float(value)
    return f"{value:.4g}"


_listeners: list[Callable[["Progress"], None]] = []


@contextlib.contextmanager
def listening(listener: Callable[["Progress"], None]) -> Iterator[None]:
    """Inside, `listener` is called after every progress line."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class Progress:
    """Logs `name  done/total  rate  ETA  values` every `interval` seconds and once at the end.

    The first update, which compiles, says nothing of the others: on the way it does not count in
    the rate, and before the second one the time left is unknown.

    Args:
      name: what is running.
      total: how many units the whole job has.
      start: units that an earlier, interrupted run had already done; they do not count in the rate.
      unit: the word for one unit, in the plural.
      interval: seconds between lines.

    Attributes:
      left: seconds left when the last line was written; None where no rate is known.
    """

    def __init__(
        self, name: str, total: int, *, start: int = 0, unit: str = "steps", interval: float = 5.0
    ):
        self.name, self.total, self.unit, self.interval = name, total, unit, interval
        self.done = self.start = start
        self.began = self.last_line = time.monotonic()
        self.left: float | None = None
        self._first: tuple[int, float] | None = None  # units done by then, and when

    def update(self, units: int = 1, values: Mapping[str, float] | None = None) -> None:
        """Counts `units` as done and prints a line when one is due (always when all is done)."""
        self.done += units
        now = time.monotonic()
        if self._first is None:
            self._first = self.done, now
        if self.done < self.total and now - self.last_line < self.interval:
            return
        self.last_line = now
        elapsed = max(now - self.began, 1e-9)
        rate = (self.done - self.start) / elapsed
        first, since = self._first
        self.left = None
        if self.done >= self.total:
            self.left = 0.0
        elif self.done > first:
            rate = (self.done - first) / max(now - since, 1e-9)
            self.left = (self.total - self.done) / rate
        left = "unknown" if self.left is None else clock(self.left)
        tail = f"ETA {left}" if self.done < self.total else f"took {clock(elapsed)}"
        shown = "  ".join(f"{k} {number(v)}" for k, v in (values or {}).items())
        logging.info(
            "%s  %d/%d %s  %.3g/s  %s  %s",
            self.name, self.done, self.total, self.unit, rate, tail, shown,
        )  # fmt: skip
        for listener in _listeners:
            listener(self)


def track(items: Iterable, name: str, total: int, unit: str) -> Iterator:
    """Yields `items` and logs progress over them."""
    progress = Progress(name, total, unit=unit)
    for item in items:
        yield item
        progress.update()


class ByteProgress:
    """The same of bytes, in MiB and from any thread; what takes less than an interval says nothing.

    name: what is running. total: how many bytes the whole job has.
    """

    def __init__(self, name: str, total: int):
        self._progress = Progress(name, max(total >> 20, 1), unit="MiB")
        self._progress.update(0)  # nothing compiles: the first bytes count in the rate
        self._bytes, self._lock = 0, threading.Lock()

    def add(self, size: int) -> None:
        """Counts `size` bytes as done."""
        lines = self._progress
        with self._lock:
            self._bytes += size
            new = (self._bytes >> 20) - lines.done
            is_short = time.monotonic() - lines.began < lines.interval
            if new and not (is_short and lines.done + new >= lines.total):
                lines.update(new)
