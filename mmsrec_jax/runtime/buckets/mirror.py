"""A folder of a bucket and its copy on this machine, file by file."""

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

from mmsrec_jax.runtime import disk
from mmsrec_jax.runtime.buckets.objects import (
    CONNECTIONS,
    ChangedError,
    Object,
    Objects,
    crc32c,
)
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.progress import ByteProgress

PRIVATE = ".bucket"
"""Folder of a copy that says what it is a copy of; in no bucket."""
MARKER = "step.json"
"""File whose arrival says that all that belongs to it has arrived."""

_STATE = "state.json"
T = TypeVar("T")
Known = tuple[int, int, int]  # generation of the object; size and time of change of the file


class Mirror:
    """The bucket is the truth: `pull` makes the copy the same, `push` takes there what has changed
    in the copy. Hidden files, as half-written ones are, belong to neither.

    Args:
      url: of the folder in the bucket.
      local: of the copy, a folder that is made, or that is such a copy already.
      skipped: names of files and folders, at any depth, that are not copied.

    Raises:
      UserError: as of `Objects`; `local` is some other folder.
    """

    def __init__(self, url: str, local: Path, skipped: Collection[str] = ()):
        self.objects, self.local, self._skipped = Objects(url), local, frozenset(skipped)
        self._pushing = threading.Lock()
        private = local / PRIVATE
        self._state = private / _STATE
        if local.is_dir() and os.listdir(local) and not private.is_dir():
            raise UserError(
                f"{local}: is to be the copy of {self.objects.url} but holds something else; give "
                "another --local_dir"
            )
        private.mkdir(parents=True, exist_ok=True)
        with self._alone():
            self._files = self._read()
            self._write()

    def pull(self, under: str = "") -> bool:
        """Makes the copy of the folder, or of a folder in it, the same as in the bucket; whether
        there is anything.

        Files that are not in the bucket are removed. A file that did not arrive whole goes on where
        it was. Of several processes of one machine one works at a time.
        """
        return self._take(self.objects.list(under), under)

    def pull_file(self, name: str) -> bool:
        """The same for one object of the folder, the only one that the copy has."""
        found = self.objects.find(name)
        return self._take([] if found is None else [found], "")

    def _take(self, found: list[Object], under: str) -> bool:
        with self._pushing, self._alone():
            self._files = self._read()
            wanted = {each.name: each for each in found if self._is_copied(each.name)}
            for name in sorted(self._local_files(under).keys() - wanted.keys()):
                (self.local / name).unlink()
                self._files.pop(name, None)
            self._drop_empty(self.local / under)
            try:
                self._download([o for o in wanted.values() if not self._is_here(o)])
            finally:
                self._write()
        return bool(wanted)

    def push(
        self,
        under: str = "",
        *,
        marked: bool = True,
        only_known: bool = False,
        at_once: bool = False,
    ) -> None:
        """Takes to the bucket what has changed since it was pulled or pushed, and removes there
        what was removed here, except with `only_known` or without what is `marked`: it may be that
        someone has cleaned up the copy.

        The files go in the order in which they were written, so that at no moment one is there
        without those that it builds on; those called `MARKER` go last.

        marked: False leaves those out. at_once: none of the files builds on another, so that they
        go many at a time. only_known: an object that another program changed since it
        was pulled or pushed stays; without, this process is the only one that writes there.

        Raises:
          UserError: nothing is left of what was here; with `only_known`, such an object was to be
            written; all others are.
        """
        with self._pushing:
            found = self._local_files(under)
            changed = [n for n, stamp in found.items() if self._files.get(n, (0,))[1:] != stamp]
            markers = [name for name in changed if Path(name).name == MARKER]
            others = [name for name in changed if name not in markers]
            others.sort(key=lambda name: found[name][1])
            said = ByteProgress(f"to {self.objects.url}", sum(found[name][0] for name in others))
            refused: list[str] = []

            def upload(name: str) -> None:
                try:
                    self._upload(name, found[name], self._generation(name) if only_known else None)
                except ChangedError:
                    refused.append(name)
                said.add(found[name][0])

            inside = f"{under}/" if under else ""
            gone = [n for n in self._files if n.startswith(inside) and n not in found]
            gone = gone if marked and not only_known else []
            try:
                each(upload, others, threads=CONNECTIONS if at_once else 1)
                each(upload, markers if marked else (), threads=1)
                if gone and not found:
                    raise UserError(
                        f"{self.local / under}: all its files went away, and stay in the bucket; "
                        "give a --local_dir where nobody cleans up, then the same command goes on"
                    )
                for name in gone:
                    self.objects.delete(name)
                    del self._files[name]
            finally:  # what did arrive or go is known to the next start
                if changed or gone:
                    self._write()
        if refused:
            raise UserError(
                f"{self.objects.url}/{refused[0]}: another program changed it since this one read "
                "the folder, so it stays as it is there; start the same command again"
            )

    def move(self, source: str, target: str) -> None:
        """Renames a folder in the bucket, whatever is in it; the marker leaves last."""
        with self._pushing:
            names = [found.name for found in self.objects.list(source)]
            names.sort(key=lambda name: name == f"{source}/{MARKER}")
            each(lambda name: self.objects.copy(name, target + name.removeprefix(source)), names)
            for name in names:
                self.objects.delete(name)
                self._files.pop(name, None)
            self._write()

    def remove(self, name: str) -> None:
        """Removes an object that is no longer in the copy."""
        with self._pushing:
            self.objects.delete(name)
            if self._files.pop(name, None):
                self._write()

    def remove_folder(self, name: str) -> None:
        """Removes whatever is in a folder of the bucket that is no longer in the copy; the marker
        goes last."""
        with self._pushing:
            names = [found.name for found in self.objects.list(name)]
            each(self.objects.delete, [n for n in names if n != f"{name}/{MARKER}"])
            self.objects.delete(f"{name}/{MARKER}")
            for known in [n for n in self._files if n.startswith(f"{name}/")]:
                del self._files[known]
            self._write()

    def relative(self, path: Path) -> str:
        """The name in the bucket of a path in the copy; "" of the copy itself."""
        name = path.relative_to(self.local).as_posix()
        return "" if name == "." else name

    def _is_copied(self, name: str) -> bool:
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\0" in name:
            raise UserError(
                f"{self.objects.url}/{name}: no file can be called so; remove it from the bucket"
            )
        hidden = any(part.startswith(".") for part in parts)
        return not hidden and self._skipped.isdisjoint(parts)

    def _is_here(self, wanted: Object) -> bool:
        """Whether the file is what the bucket holds: by its time of change, else by its bytes."""
        path = self.local / wanted.name
        if (stamp := _stamp(path)) is None or stamp[0] != wanted.size:
            return False
        if self._files.get(wanted.name) == (wanted.generation, *stamp):
            return True
        if crc32c(path) != wanted.crc32c:
            return False
        self._keep(wanted, path)
        return True

    def _download(self, wanted: list[Object]) -> None:
        total = sum(found.size for found in wanted)
        said = ByteProgress(f"from {self.objects.url}", total)

        def copy(found: Object) -> None:
            path = self.local / found.name
            partial = path.with_name(f".{path.name}.{found.generation}.partial")
            with disk.named(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                self.objects.download(found, partial, said.add)
                disk.sync(partial)
                self._keep(found, partial)
                os.replace(partial, path)

        each(copy, wanted)

    def _keep(self, found: Object, path: Path) -> None:
        """A copy has the time of the object, the same on every machine: digests of what a run reads
        hold it."""
        os.utime(path, ns=(found.updated, found.updated))
        self._files[found.name] = (found.generation, found.size, path.stat().st_mtime_ns)

    def _generation(self, name: str) -> int:
        """Of the object when it was last pulled or pushed, 0 of one that was not there."""
        return self._files[name][0] if name in self._files else 0

    def _upload(self, name: str, stamp: tuple[int, int], generation: int | None) -> None:
        try:
            found = self.objects.upload(self.local / name, name, generation)
        except FileNotFoundError:  # removed or renamed since
            return
        self._files[name] = (found.generation, *stamp)

    def _local_files(self, under: str) -> dict[str, tuple[int, int]]:
        """Size and time of change of the files that belong to the bucket too."""
        found = {}
        for folder, folders, names in os.walk(self.local / under):
            folders[:] = [n for n in folders if n[0] != "." and n not in self._skipped]
            for name in names:
                path = Path(folder) / name
                if name[0] == "." or name in self._skipped:
                    continue
                if (stamp := _stamp(path)) is not None:
                    found[self.relative(path)] = stamp
        return found

    def _drop_empty(self, folder: Path) -> None:
        """Removes the folders in it that hold nothing."""
        for inside, folders, _ in os.walk(folder, topdown=False):
            for name in folders:
                with contextlib.suppress(OSError):  # it holds something
                    (Path(inside) / name).rmdir()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Waits until no other process of this machine is in such a block of this copy."""
        with (self._state.parent / "pull.lock").open("w") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            yield

    def _read(self) -> dict[str, Known]:
        if not self._state.exists():
            return {}
        remedy = f"delete {self.local}, the copy of {self.objects.url}"
        state = disk.read_json(self._state, remedy)
        with disk.readable(self._state, remedy):
            if state["url"] != self.objects.url:
                raise UserError(
                    f"{self.local}: is the copy of {state['url']} and not of {self.objects.url}; "
                    "give another --local_dir"
                )
            return {name: (known[0], known[1], known[2]) for name, known in state["files"].items()}

    def _write(self) -> None:
        partial = disk.temporary(self._state)
        with disk.named(self._state):
            partial.write_text(json.dumps({"url": self.objects.url, "files": self._files}))
            os.replace(partial, self._state)


def each(work: Callable[[T], object], items: Iterable[T], *, threads: int = CONNECTIONS) -> None:
    """Calls `work` with all of them, in their order and so many at once; after an error it begins
    no more, of several threads as soon as it has heard of it."""
    if threads == 1:  # the thread of a pool would take the next one before it is told not to
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(threads) as pool:
        begun = [pool.submit(work, item) for item in items]
        try:
            for one in as_completed(begun):
                one.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of change of a file, None where there is none."""
    try:
        known = path.stat()
    except OSError:
        return None
    return known.st_size, known.st_mtime_ns
