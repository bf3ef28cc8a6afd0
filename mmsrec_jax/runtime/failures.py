"""When one process of a run stops of an error, the others say so and stop too, within seconds.

Left alone they would wait for it in a collective operation or at a barrier. They tell each other
through JAX's coordination service, which the main process keeps; one that is killed says nothing,
and JAX itself stops the others when its heartbeats are missed.
"""

import atexit
import json
import os
import sys
import threading
import time
from typing import NoReturn

from absl import logging
from jax._src import distributed  # has no public name

_FAILED, _LEFT = "mmsrec_jax_failed", "mmsrec_jax_left"
_EVERY = 1.0  # seconds between two looks
_GRACE = 3.0  # seconds in which a process that has the same error may say so itself
_LAST = 15.0  # seconds that the main one, which keeps the service, waits for the others

_over = threading.Event()


def watch() -> None:
    """From now on this process stops when another one has called `stop_all`."""
    threading.Thread(target=_watch, name="failures", daemon=True).start()
    atexit.register(_over.set)


def stop_all(reason: str, status: int) -> NoReturn:
    """Ends this process, one of several, and thereby the others.

    reason: one line, which they show. status: of the exit, of all of them.
    """
    state = distributed.global_state
    assert state.client is not None, "one of several processes"
    _over.set()
    try:
        told = json.dumps({"reason": reason, "status": status})
        state.client.key_value_set(f"{_FAILED}/{state.process_id}", told)
        deadline = time.monotonic() + (_LAST if state.process_id == 0 else 0.0)
        while time.monotonic() < deadline and len(_ended()) < state.num_processes:
            time.sleep(0.1)
    except Exception as error:  # the service is gone, and with it the main process
        logging.warning("the other processes could not be told: %s", type(error).__name__)
    leave(status)


def _watch() -> None:
    state = distributed.global_state
    assert state.client is not None, "one of several processes"
    while not _over.wait(_EVERY):
        try:
            failed = state.client.key_value_dir_get(f"{_FAILED}/")
        except Exception:  # the main process is gone: JAX ends this one
            return
        if not failed or _over.wait(_GRACE):
            continue
        key, text = min(failed)
        told = json.loads(text)
        logging.error(
            "process %s has stopped, and this one stops with it: %s",
            key.rpartition("/")[2], told["reason"],
        )  # fmt: skip
        try:
            state.client.key_value_set(f"{_LEFT}/{state.process_id}", "")
            if state.process_id == 0:
                deadline = time.monotonic() + _LAST
                while time.monotonic() < deadline and len(_ended()) < state.num_processes:
                    time.sleep(0.1)
        finally:
            leave(told["status"])


def _ended() -> set[str]:
    """Ids of the processes that have ended or are about to."""
    client = distributed.global_state.client
    assert client is not None, "one of several processes"
    found = [*client.key_value_dir_get(f"{_FAILED}/"), *client.key_value_dir_get(f"{_LEFT}/")]
    return {key.rpartition("/")[2] for key, _ in found}


def leave(status: int) -> NoReturn:
    """Without the end that Python and JAX would make of it: that waits for the other processes."""
    logging.flush()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
