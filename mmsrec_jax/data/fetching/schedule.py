"""Which URL is asked for next: no host more often, or by more threads at once, than it may be."""

import dataclasses
import heapq
import itertools
import threading
import time
from collections.abc import Iterator

from mmsrec_jax.data.fetching.links import Link


@dataclasses.dataclass
class Job:
    """The picture of one item. `link` is where it is looked for now, after `hops` redirects from
    `start`; `attempts` have gone wrong."""

    item: str
    url: str
    start: Link
    link: Link
    attempts: int = 0
    hops: int = 0


@dataclasses.dataclass
class _Host:
    waiting: list[tuple[float, int, Job]] = dataclasses.field(default_factory=list)  # a heap
    active: int = 0
    next_start: float = 0.0

    def ready_at(self) -> float:
        return max(self.next_start, self.waiting[0][0])


class Schedule:
    """Shared by all threads. Each job that `take` gives goes back by `put_back` or `finished`.

    Args:
      jobs: what there is to do, looked at a little ahead only.
      rate: requests that a host gets in a second.
      per_host: requests that a host answers at once.
      ahead: jobs that wait here at most.
    """

    def __init__(self, jobs: Iterator[Job], *, rate: float, per_host: int, ahead: int = 2000):
        self._jobs, self._pause, self._per_host, self._ahead = jobs, 1 / rate, per_host, ahead
        self._hosts: dict[str, _Host] = {}
        self._waiting = self._active = 0
        self._order = itertools.count()
        self._closed = False
        self._changed = threading.Condition()

    def take(self) -> Job | None:
        """The next job, when its host may be asked; None when all are done, or after `close`."""
        with self._changed:
            while not self._closed:
                self._fill()
                if not self._waiting and not self._active:
                    break
                now = time.monotonic()
                host = self._soonest()
                if host is not None and host.ready_at() <= now:
                    _, _, job = heapq.heappop(host.waiting)
                    host.active += 1
                    host.next_start = now + self._pause
                    self._waiting -= 1
                    self._active += 1
                    return job
                self._changed.wait(None if host is None else host.ready_at() - now)
            self._changed.notify_all()
            return None

    def finished(self, job: Job) -> None:
        """The job needs nothing more."""
        with self._changed:
            self._release(job.link.host)

    def put_back(
        self, job: Job, link: Link, *, after: float = 0.0, host_rests: float = 0.0
    ) -> None:
        """The job is to be done again, at `link`, in `after` seconds at the earliest; the host that
        it has asked is left alone for `host_rests` seconds."""
        with self._changed:
            now = time.monotonic()
            host = self._release(job.link.host)
            host.next_start = max(host.next_start, now + host_rests)
            job.link = link
            self._add(job, now + after)

    def close(self) -> None:
        """Gives out nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fill(self) -> None:
        while self._waiting < self._ahead and (job := next(self._jobs, None)) is not None:
            self._add(job, 0.0)

    def _add(self, job: Job, not_before: float) -> None:
        host = self._hosts.setdefault(job.link.host, _Host())
        heapq.heappush(host.waiting, (not_before, next(self._order), job))
        self._waiting += 1
        self._changed.notify_all()

    def _release(self, name: str) -> _Host:
        host = self._hosts[name]
        host.active -= 1
        self._active -= 1
        self._changed.notify_all()
        return host

    def _soonest(self) -> _Host | None:
        """The host that may be asked first, of those that have a job and a thread to spare."""
        now = time.monotonic()
        for name in [n for n, h in self._hosts.items() if _is_idle(h) and h.next_start < now]:
            del self._hosts[name]
        able = [h for h in self._hosts.values() if h.waiting and h.active < self._per_host]
        return min(able, key=_Host.ready_at, default=None)


def _is_idle(host: _Host) -> bool:
    return not host.waiting and not host.active
