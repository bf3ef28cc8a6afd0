"""One run at a time in a folder of a bucket.

The lock is the object `run.lock`, which is made only where there is none, and written again every
few seconds by the run that holds it. A run that finds it there waits: when it is written again the
other run is alive, and this one ends; when it is not for two minutes, that run is dead. No clock of
two machines is compared.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from mmsrec_jax.runtime import lock
from mmsrec_jax.runtime.buckets.objects import ChangedError, Objects
from mmsrec_jax.runtime.errors import UserError

RENEWED = 20.0
"""Seconds after which the run that holds a lock writes it again."""
DEAD = 120.0
"""Seconds after which a lock that nobody writes again counts as left behind."""
_LOOKS = 2.0  # seconds between two looks at the lock of another run


@contextlib.contextmanager
def only_run(objects: Objects, flag: str = "--workdir") -> Iterator[None]:
    """Inside, no other run begins in the folder.

    A run that finds in the block that another one took its lock, after it could not reach the
    bucket for long, ends its process.

    flag: what names another folder on the command line.

    Raises:
      HeldError: another run is under way there.
    """
    held = _Held(objects, flag)
    held.take()
    over = threading.Event()
    renewing = threading.Thread(target=held.renew_until, args=(over,), name="lock", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join()
        objects.delete(lock.NAME, held.generation)


class _Held:
    """The lock of this process.

    Attributes:
      generation: in which this process last wrote it.
    """

    def __init__(self, objects: Objects, flag: str):
        self._objects, self._flag, self.generation = objects, flag, 0
        about = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": time.time(),
            "place": _place(),
            "run": uuid.uuid4().hex,
        }
        # Always the same: the lock is known as this one's after a write whose answer was lost.
        self._content = json.dumps(about).encode()

    def take(self) -> None:
        """Makes the lock, or takes that of a run that is dead; HeldError where it is alive."""
        found = self._objects.read(lock.NAME)
        if found is not None and not _is_dead_process(found[0]):
            where = f"{self._objects.url}/{lock.NAME}"
            holder = lock.holder(found[0])
            logging.info(
                "%s: a run holds it (%s); waits up to %g s to see whether it is alive",
                where, holder, DEAD,
            )  # fmt: skip
            deadline = time.monotonic() + DEAD
            while time.monotonic() < deadline:
                time.sleep(_LOOKS)
                now = self._objects.read(lock.NAME)
                if now is None:
                    found = None
                    break
                if now[1] != found[1]:
                    raise self._refused(now[0])
        try:
            self._write(0 if found is None else found[1])
        except ChangedError as error:
            now = self._objects.read(lock.NAME)
            raise self._refused(now[0] if now else b"") from error

    def renew_until(self, over: threading.Event) -> None:
        """Writes the lock again and again."""
        while not over.wait(RENEWED):
            try:
                self._write(self.generation)
            except UserError as error:
                logging.warning("%s", error)  # and tries again: who takes the lock is seen below
            except ChangedError as error:
                raise OSError(
                    f"{self._objects.url}/{lock.NAME}: another run took the lock while this one "
                    "could not reach the bucket; start the same command again when that one ended"
                ) from error

    def _write(self, generation: int) -> None:
        self.generation = self._objects.write_if(lock.NAME, self._content, generation)

    def _refused(self, content: bytes) -> lock.HeldError:
        return lock.HeldError(
            f"{self._objects.url}: another run is under way here ({lock.holder(content)}); wait "
            f"for its end, stop it, or give this one another {self._flag}"
        )


def _place() -> str:
    """Where a number means this process: the machine since its start, the container."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return ""


def _is_dead_process(content: bytes) -> bool:
    """Whether a lock is of a process of this place that is no more."""
    try:
        told = json.loads(content)
        if not told["place"] or told["place"] != _place():
            return False
        os.kill(int(told["process"]), 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, OverflowError, OSError):
        return False
    return False
