"""One run at a time in a folder, or programs in it one after the other.

The lock is one of the operating system on the file `run.lock`, so that it ends with the process
that holds it, however that ends. On NFS the server keeps it, for all machines. A workdir in a
bucket has a lock of another kind (`runtime.buckets.lock`). A bucket that is mounted as a folder has
none between machines: see docs/reliability.md.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import logging

from mmsrec_jax.runtime import processes
from mmsrec_jax.runtime.disk import named
from mmsrec_jax.runtime.errors import UserError, first_line

NAME = "run.lock"
_REFUSED = (errno.EACCES, errno.EAGAIN)


class HeldError(UserError):
    """Another run, or another process, has the lock."""


@contextlib.contextmanager
def only_run(folder: Path, flag: str = "--workdir") -> Iterator[None]:
    """Inside, no other run begins in `folder`, an existing folder. Of several processes the main
    one holds the lock for all.

    flag: what names another folder on the command line.

    Raises:
      HeldError: another run is under way there.
    """
    with _locked(lambda: _lock(folder, flag)):
        yield


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Inside, no other process has its turn in `folder`, an existing folder: who comes later waits
    and says for whom. Of several processes the main one holds the lock for all."""
    with _locked(lambda: _lock(folder, None)):
        yield


@contextlib.contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Inside, no other process has `folder`, an existing folder, in `only_process`. Unlike the
    others it is of this process alone, which exchanges nothing with those of its run.

    Raises:
      HeldError: another process has it.
    """
    number = _lock(folder, "--local_dir")
    try:
        yield
    finally:
        _release(number)


@contextlib.contextmanager
def _locked(lock: Callable[[], int]) -> Iterator[None]:
    opened: list[int] = []
    processes.from_main(lambda: opened.append(lock()))
    try:
        yield
    finally:
        for number in opened:
            _release(number)


def _lock(folder: Path, flag: str | None) -> int:
    """The open file of the lock. flag: as of `only_run`; None waits while another has it."""
    path = folder / NAME
    with named(path):
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        # Of the process and not of the open file: input workers do not inherit it.
        fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        told = holder(os.pread(number, 4096, 0))
        if error.errno not in _REFUSED:
            logging.warning(
                "%s: this disk has no locks (%s); see to it that no other run uses the folder",
                folder, first_line(error),
            )  # fmt: skip
        elif flag is None:
            logging.info("%s: in use (%s); waits until it is free", folder, told)
            fcntl.lockf(number, fcntl.LOCK_EX)
        else:
            os.close(number)
            raise HeldError(
                f"{folder}: another run is under way here ({told}); wait for its end, stop it, "
                f"or give this one another {flag}"
            ) from error
    text = json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": time.time()})
    with named(path):
        os.ftruncate(number, 0)
        os.pwrite(number, text.encode(), 0)
    return number


def _release(number: int) -> None:
    with contextlib.suppress(OSError):  # of a disk that went away
        os.ftruncate(number, 0)
    os.close(number)


def holder(content: bytes) -> str:
    """Who holds a lock, by what it says."""
    try:
        told = json.loads(content)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(told["since"])))
        return f"process {int(told['process'])} on {str(told['host'])[:100]!r} since {since}"
    except (ValueError, KeyError, TypeError, OverflowError):
        return "it does not say which"
