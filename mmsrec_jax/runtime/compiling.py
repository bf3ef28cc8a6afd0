"""Says which program is being compiled when that takes longer than a few seconds: nothing else is
heard of a run until it is done."""

import re
import threading
import time
from typing import Any

import jax
from absl import logging

from mmsrec_jax.runtime.progress import clock

LONG = 5.0  # seconds
# What JAX says when the compiler gets a program, and when that is compiled or was found stored.
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """Listens to JAX's own measurements; of every thread one program at a time."""

    def __init__(self, long: float):
        self._long = long
        self._running: dict[int, _Compilation] = {}

    def __call__(self, event: str, duration_secs: float, **about: Any) -> None:
        """An event of `jax.monitoring`."""
        thread = threading.get_ident()
        if event in (_LOWERED, _COMPILED) and (ended := self._running.pop(thread, None)):
            ended.end()
        if event == _LOWERED:
            name = re.sub(r"jit\((.*)\)", r"\1", str(about.get("fun_name", "a program")))
            self._running[thread] = _Compilation(name, self._long)


class _Compilation:
    def __init__(self, name: str, long: float):
        self._name, self._began, self._is_told = name, time.monotonic(), False
        self._timer = threading.Timer(long, self._tell)
        self._timer.daemon = True
        self._timer.start()

    def _tell(self) -> None:
        self._is_told = True
        logging.info("compiling %s", self._name)

    def end(self) -> None:
        self._timer.cancel()
        if self._is_told:
            logging.info("compiled %s (%s)", self._name, clock(time.monotonic() - self._began))


def watch() -> None:
    """From now on, in this process. Call it once."""
    jax.monitoring.register_event_duration_secs_listener(Compilations(LONG))
