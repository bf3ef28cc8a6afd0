"""Two sides of a comparison, each in a process of its own, which work in turn."""

import os
import time
from collections.abc import Callable, Collection
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any


class Side:
    """A process that serves one side; calls are answered in order."""

    def __init__(self, serve: Callable[..., None], *args: object):
        """serve: given a pipe and `args`, ends with `answer`."""
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, *args), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self, what: str, *args: object) -> Any:
        self._pipe.send((what, args))
        return self._pipe.recv()

    def close(self) -> None:
        self._pipe.close()
        self._process.join()


def take_cores(count: int) -> None:
    """This process, and what it starts, works on so many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    os.environ["OMP_NUM_THREADS"] = str(count)


def answer(pipe: Connection, served: object, *, untimed: Collection[str]) -> None:
    """Calls methods of `served` until the pipe closes: what they return, and of those not in
    `untimed` {seconds, processor_seconds, result}."""
    while True:
        try:
            what, args = pipe.recv()
        except EOFError:
            return
        call = getattr(served, what)
        if what in untimed:
            pipe.send(call(*args))
            continue
        start, processor = time.perf_counter(), time.process_time()
        result = call(*args)
        pipe.send({
            "seconds": time.perf_counter() - start,
            "processor_seconds": time.process_time() - processor,
            "result": result,
        })  # fmt: skip
