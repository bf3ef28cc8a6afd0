"""What a whole run has left, in one line: at the beginning of each step and now and then within.

A time is told of a step whose duration is known: from the rate of its own progress lines, where one
of them counts all of the step; from a finished record of the same step, in an earlier form of the
run or in another run that it takes steps from; or from a finished step of the same kind (the same
settings by name, equal ones of the training). Numbers of training steps scale it. A step without
any of these has no time, and the line names it.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import logging

from mmsrec_jax.runtime.progress import Progress, clock

_EVERY = 60.0  # seconds between lines within a step


@dataclasses.dataclass(frozen=True)
class Timed:
    """A finished step: its name, its config as recorded, and how long it took in seconds."""

    name: str
    config: Mapping[str, Any]
    seconds: float


class WholeRun:
    """The steps of a run that are left.

    Args:
      steps: name -> config as recorded, of every step of the run in order.
      to_run: names of those that are not finished.
      known: finished steps of this run and others, the most telling first.
      now: a clock in seconds.
    """

    def __init__(
        self,
        steps: Mapping[str, Mapping[str, Any]],
        to_run: Sequence[str],
        known: Iterable[Timed],
        now: Callable[[], float] = time.monotonic,
    ):
        self._steps, self._left, self._known = steps, list(to_run), list(known)
        self._now = now
        self._step = ""
        self._began = self._last_line = 0.0
        self._resumed = False
        self._counted: tuple[float, float] | None = None  # seconds left, when that was said

    def begin(self, step: str, *, resumed: bool) -> None:
        """A step begins, or goes on: then how much of it is left is not known beforehand."""
        if step not in self._left:
            self._left.insert(0, step)
        self._step, self._began, self._counted = step, self._now(), None
        self._resumed = resumed
        self._last_line = self._began
        logging.info("%s", self.line())

    def progressed(self, progress: Progress) -> None:
        """A progress line of the step was written; a line of ours follows when one is due."""
        if not self._step:
            return
        planned = _planned(self._steps[self._step])
        if progress.left is not None and (
            progress.name == self._step or planned == (progress.unit, progress.total)
        ):
            self._counted = progress.left, self._now()
        if self._now() - self._last_line >= _EVERY:
            self._last_line = self._now()
            logging.info("%s", self.line())

    def end(self, step: str) -> None:
        """The step that began has finished; how long it took tells of those that are like it."""
        if not self._resumed:
            self._known.insert(0, Timed(step, self._steps[step], self._now() - self._began))
        self._left.remove(step)
        self._step = ""

    def line(self) -> str:
        """As "run: step 3 of 9 (sft), about 6:10 left"."""
        place = list(self._steps).index(self._step) + 1
        line = f"run: step {place} of {len(self._steps)} ({self._step})"
        later = self._left[self._left.index(self._step) + 1 :]
        times = {self._step: self._of_this(), **{name: self._of(name) for name in later}}
        unknown = [name for name, seconds in times.items() if seconds is None]
        seconds = sum(seconds or 0.0 for seconds in times.values())
        if not unknown:
            return f"{line}, about {clock(seconds)} left"
        if len(unknown) == len(times):
            return f"{line}, {len(later)} to run after it"
        return f"{line}, about {clock(seconds)} left and the time of {', '.join(unknown)}"

    def _of_this(self) -> float | None:
        now = self._now()
        if self._counted is not None:
            left, at = self._counted
            return max(left - (now - at), 0.0)
        whole, spent = self._of(self._step), now - self._began
        # What takes longer than it did before has an unknown time left.
        return None if whole is None or self._resumed or spent > whole else whole - spent

    def _of(self, step: str) -> float | None:
        """Seconds of a whole step; None where nothing tells."""
        config = self._steps[step]
        same = (one for one in self._known if one.name == step)
        alike = (one for one in self._known if _is_alike(one.config, config))
        found = next(same, None) or next(alike, None)
        if found is None:
            return None
        now, then = _planned(config), _planned(found.config)
        return found.seconds * (now[1] / then[1] if now and then else 1.0)


def _planned(config: Mapping[str, Any]) -> tuple[str, int] | None:
    """("steps", how many) of a step that trains; None for others."""
    training = _training(config)
    return None if training is None else ("steps", training[1]["steps"])


def _training(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """Name and settings of the one section that counts steps."""
    found = [(n, v) for n, v in config.items() if isinstance(v, Mapping) and v.get("steps")]
    return found[0] if len(found) == 1 else None


def _is_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    first, second = _training(one), _training(other)
    if first is None or second is None or one.keys() != other.keys():
        return False
    without = [
        {k: v for k, v in of.items() if k not in ("steps", "seed")} for _, of in (first, second)
    ]
    return first[0] == second[0] and without[0] == without[1]
