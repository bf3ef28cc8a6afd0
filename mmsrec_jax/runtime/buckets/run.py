"""A run's workdir in a bucket: each machine works in a copy.

The main process takes to the bucket what a step left when it ends, its record last, and what has
changed at all once a minute; every machine reads the others' steps from there. Arrays, which all
processes write together, and compiled programs lie in the bucket alone. Only what is gone from the
folder of the step that runs is removed there: others may clean up the folder where copies lie.
"""

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from absl import logging
from etils import epath

from mmsrec_jax.runtime import lock as local_lock
from mmsrec_jax.runtime import processes
from mmsrec_jax.runtime.buckets import lock
from mmsrec_jax.runtime.buckets.copies import OF_A_RUN_ALONE, copy_of
from mmsrec_jax.runtime.buckets.mirror import PRIVATE, Mirror, each
from mmsrec_jax.runtime.buckets.objects import Objects, is_url
from mmsrec_jax.runtime.errors import UserError

EVERY = 60.0
"""Seconds between two looks at what has changed in a step that runs."""
_ARRAYS = "weights"
_NOT_COPIED = (*OF_A_RUN_ALONE, _ARRAYS, local_lock.NAME)
_WITHOUT = frozenset(OF_A_RUN_ALONE)
_BUSY = 10  # times as long as a look took, at least, between it and the next

_open: dict[Path, Mirror] = {}
_pulls = False  # whether this process does so for its machine, after the main one has written


@contextlib.contextmanager
def opened(workdir: str | Path, flag: str = "--workdir") -> Iterator[Path]:
    """The folder in which this process runs the steps of a workdir; no other run does meanwhile.

    flag: what names another workdir on the command line.

    Raises:
      UserError: another run is under way there; the bucket cannot be read or written.
    """
    if not is_url(workdir):
        yield place(workdir)
        return
    mirror = Mirror(str(workdir), place(workdir), _NOT_COPIED)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_explained(mirror))
        stack.enter_context(local_lock.only_run(mirror.local / PRIVATE, "--local_dir"))
        processes.from_main(lambda: stack.enter_context(lock.only_run(mirror.objects, flag)))
        logging.info("%s: this machine works in %s", mirror.objects.url, mirror.local)
        leader = _leader(mirror.local)
        if leader == processes.index():
            mirror.pull()
        processes.barrier()
        global _pulls
        _pulls = leader == processes.index() and leader != 0
        stack.enter_context(_registered(mirror))
        if processes.is_main():
            stack.enter_context(_kept(mirror))
        yield mirror.local


@contextlib.contextmanager
def reading(workdir: str | Path) -> Iterator[Path]:
    """The folder in which a program reads what a run has done so far; what the program writes there
    is taken to the bucket when the block ends.

    Raises:
      UserError: the bucket cannot be read, or written where something was; another program wrote
        meanwhile what this one wrote.
    """
    with only_reading(workdir) as folder:
        yield folder
        if is_url(workdir):
            _open[folder].push(only_known=True)


@contextlib.contextmanager
def only_reading(workdir: str | Path, *, begun: bool = True) -> Iterator[Path]:
    """The same, and nothing is taken to the bucket. begun: something has to be there.

    Raises:
      UserError: the bucket cannot be read.
    """
    if not is_url(workdir):
        yield Path(workdir)
        return
    with contextlib.ExitStack() as stack:
        mirror = Mirror(str(workdir), _unused_copy(str(workdir), stack), _NOT_COPIED)
        stack.enter_context(_explained(mirror))
        if not mirror.pull() and begun:
            raise UserError(
                f"{mirror.objects.url}: no run has begun here; name the --workdir of "
                "launch/train.py"
            )
        logging.info("%s: read in %s", mirror.objects.url, mirror.local)
        with _registered(mirror):
            yield mirror.local


def place(workdir: str | Path) -> Path:
    """The folder in which `opened` works on this machine; nobody asks the bucket."""
    return copy_of(str(workdir), "run") if is_url(workdir) else Path(workdir).resolve()


def in_bucket(path: Path) -> epath.Path:
    """Where arrays and compiled programs lie that belong in this folder of a workdir: in the
    bucket, where it is in one."""
    found = _of(path)
    return epath.Path(path) if found is None else epath.Path(_url(found, path))


def push(directory: Path, *, at_once: bool = False) -> None:
    """Takes what has changed in a folder of the workdir to the bucket; the main process does.
    at_once: none of the files builds on another."""
    if processes.is_main() and (found := _of(directory)):
        found.push(found.relative(directory), at_once=at_once)


def remove(path: Path) -> None:
    """Removes a file of a workdir, if it is there, in the bucket too."""
    path.unlink(missing_ok=True)
    if found := _of(path):
        found.remove(found.relative(path))


def remove_folder(directory: Path) -> None:
    """Removes a folder of a workdir, in the bucket too, where its marker goes last."""
    shutil.rmtree(directory)
    if found := _of(directory):
        found.remove_folder(found.relative(directory))


def refresh(directory: Path) -> None:
    """Reads what another program has left in a folder of the workdir."""
    if found := _of(directory):
        found.pull(found.relative(directory))


def only_run(directory: Path) -> contextlib.AbstractContextManager[None]:
    """The lock of a run in a folder of the workdir, which is there or in a bucket.

    Raises:
      HeldError: another run is under way there.
      UserError: the bucket cannot be read or written.
    """
    if found := _of(directory):
        return lock.only_run(Objects(_url(found, directory)))
    return local_lock.only_run(directory)


def pull(directory: Path) -> None:
    """Reads what the main process has pushed, on the other machines. All processes call it."""
    if found := _of(directory):
        if _pulls:
            found.pull(found.relative(directory))
        processes.barrier()


def is_copy(directory: Path) -> bool:
    """Whether a folder is in the copy of a workdir."""
    return _of(directory) is not None


def is_free(path: Path) -> bool:
    """Whether nothing is there, in the bucket either."""
    found = _of(path)
    return not path.exists() and not (found and found.objects.list(found.relative(path)))


def move(source: Path, target: Path) -> None:
    """Renames a folder of a workdir, in the bucket too."""
    source.rename(target)
    if found := _of(source):
        found.move(found.relative(source), found.relative(target))


def take_arrays(source: Path, target: Path, partial: Path) -> None:
    """Brings the arrays of a step's folder to another run's, `target`, which is made in `partial`
    and has its other files there. In a bucket arrays are not in the copy."""
    ours, theirs = _of(target), _of(source)
    if theirs is not None:
        under = f"{theirs.relative(source)}/"

        def bring(name: str) -> None:
            found = wanted[name]
            if ours is not None:
                theirs.objects.copy(found.name, f"{ours.relative(target)}/{name}", ours.objects)
            else:
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                theirs.objects.download(found, partial / name, lambda size: None)

        there = {o.name.removeprefix(under): o for o in theirs.objects.list(under[:-1])}
        wanted = {name: found for name, found in there.items() if _is_array(name)}
        each(bring, wanted)
    elif ours is not None:
        name = ours.relative(target)

        def upload(path: Path) -> None:
            ours.objects.upload(path, f"{name}/{path.relative_to(partial).as_posix()}")

        folders = [path for path in partial.rglob(_ARRAYS) if path.is_dir()]
        each(upload, [p for folder in folders for p in folder.rglob("*") if p.is_file()])
        for folder in folders:
            shutil.rmtree(folder)


def _is_array(name: str) -> bool:
    parts = name.split("/")
    return _ARRAYS in parts and _WITHOUT.isdisjoint(parts)


def _unused_copy(url: str, stack: contextlib.ExitStack) -> Path:
    """A copy in which no other program reads as long as the stack is open: one would remove what
    the other has written and not yet pushed."""
    number = 0
    while True:
        number += 1
        copy = copy_of(url, f"read{number}")
        if copy in _open:
            continue
        copy.parent.mkdir(exist_ok=True)
        with contextlib.suppress(local_lock.HeldError):
            stack.enter_context(local_lock.only_process(copy.parent))
            return copy


def _of(path: Path) -> Mirror | None:
    """The copy that a path lies in, None for other paths."""
    path = Path(os.path.abspath(path))
    return next((m for local, m in _open.items() if path.is_relative_to(local)), None)


def _url(mirror: Mirror, path: Path) -> str:
    name = mirror.relative(Path(os.path.abspath(path)))
    return f"{mirror.objects.url}/{name}" if name else mirror.objects.url


def _leader(local: Path) -> int:
    """The first of the processes that see the same copy as this one."""
    with tempfile.NamedTemporaryFile(prefix="seen-", dir=local / PRIVATE) as own:
        names = processes.gather(Path(own.name).name)
        found = next(i for i, name in enumerate(names) if (local / PRIVATE / name).exists())
        processes.barrier()
    return found


@contextlib.contextmanager
def _registered(mirror: Mirror) -> Iterator[None]:
    _open[mirror.local] = mirror
    try:
        yield
    finally:
        del _open[mirror.local]


@contextlib.contextmanager
def _kept(mirror: Mirror) -> Iterator[None]:
    """Takes to the bucket what changes in the block, once in a while and at its end."""
    over = threading.Event()

    def sweep() -> None:
        wait = EVERY
        while not over.wait(wait):
            began = time.monotonic()
            try:
                mirror.push(marked=False)
            except UserError as error:
                logging.warning("%s; this is tried again", error)
            wait = max(EVERY, _BUSY * (time.monotonic() - began))

    thread = threading.Thread(target=sweep, name="bucket", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        mirror.push(marked=False)


@contextlib.contextmanager
def _explained(mirror: Mirror) -> Iterator[None]:
    """Errors that name a file of the copy say of what it is one."""
    try:
        yield
    except UserError as error:
        if str(mirror.local) not in str(error):
            raise
        raise UserError(
            f"{error} ({mirror.local} is the copy of {mirror.objects.url}; delete there what is to "
            "be made again)"
        ) from error
