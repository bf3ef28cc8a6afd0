"""SIGTERM ends a run where it can be resumed; the same command continues it.

Schedulers send it some seconds before they take a machine away. A training loop saves and stops
after the step under way. Elsewhere a run stops at once, for a step that was stopped goes on where
it was. Of several processes any may get the signal: JAX's preemption service then picks one of the
points that all of them pass, and all stop there.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Interrupted(BaseException):
    """SIGTERM came, and what was done so far is on disk. No error: nothing may swallow it."""


_asked = False
_places = 0
_deferred = False


def watch() -> None:
    """From now on SIGTERM raises `Interrupted`, or waits for the end of `deferred`."""
    if not jax.distributed.is_initialized():  # its service has a handler of its own
        signal.signal(signal.SIGTERM, _on_signal)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Inside, the signal is only remembered for `requested`."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False


def requested() -> bool:
    """Whether to stop here; the same answer in all processes, which all have to ask."""
    global _asked, _places
    if jax.distributed.is_initialized():
        _places += 1
        _asked = multihost_utils.reached_preemption_sync_point(_places) or _asked
    return _asked


def stop_if_requested() -> None:
    """A point where work that keeps its results may stop; all processes have to pass it."""
    if requested():
        raise Interrupted


def _on_signal(signum: int, frame: FrameType | None) -> None:
    global _asked
    _asked = True
    if not _deferred:
        raise Interrupted
