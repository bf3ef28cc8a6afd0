"""What a program is to leave in a bucket and outside of a run: it writes on this machine, and the
files are taken to the bucket when it ends."""

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from absl import logging

from mmsrec_jax.runtime import lock as local_lock
from mmsrec_jax.runtime.buckets.copies import copy_of
from mmsrec_jax.runtime.buckets.mirror import each
from mmsrec_jax.runtime.buckets.objects import ChangedError, Objects, is_url
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.progress import ByteProgress


@contextlib.contextmanager
def folder(
    given: str | os.PathLike[str], *, new: bool = False, last: Collection[str] = ()
) -> Iterator[Path]:
    """The folder to write in: `given`, or one of this machine that may not be there yet and whose
    files arrive in the bucket when the block ends well.

    new: nothing may be in the bucket's. last: names of the files that arrive after all others:
    whoever finds one of them finds everything.

    Raises:
      UserError: something is there; the bucket cannot be written; another program wrote there
        meanwhile, or is about to on this machine.
    """
    if not is_url(given):
        yield Path(given)
        return
    objects = Objects(str(given))
    known = {found.name: found.generation for found in objects.list()}
    if new and known:
        raise UserError(f"{objects.url} is there and not empty; name a new folder or delete it")
    with _place(objects.url) as made:
        yield made
        files = sorted(path for path in made.rglob("*") if path.is_file())
        said = ByteProgress(f"to {objects.url}", sum(path.stat().st_size for path in files))

        def upload(path: Path) -> None:
            name = path.relative_to(made).as_posix()
            _upload(objects, path, name, known.get(name, 0))
            said.add(path.stat().st_size)

        each(upload, [path for path in files if path.name not in last])
        each(upload, [path for path in files if path.name in last])
    logging.info("%s: %d files", objects.url, len(files))


@contextlib.contextmanager
def file(given: str | os.PathLike[str]) -> Iterator[Path]:
    """The same of one file, which holds what is there already. It arrives, if it was written,
    however the block ends.

    Raises:
      UserError: as `folder`; the URL names no file.
    """
    if not is_url(given):
        yield Path(given)
        return
    above, _, name = str(given).rpartition("/")
    if not name or above == "gs:/":
        raise UserError(f"{given}: name a file, gs://BUCKET/FILE")
    objects = Objects(above)
    found = objects.find(name)
    with _place(str(given)) as path:
        if found is not None:
            objects.download(found, path, lambda size: None)
            os.utime(path, ns=(0, 0))  # a time at which nothing is written
        try:
            yield path
        finally:
            if path.exists() and path.stat().st_mtime_ns:
                _upload(objects, path, name, found.generation if found else 0)


@contextlib.contextmanager
def _place(url: str) -> Iterator[Path]:
    """A path of this machine with the name of what `url` names. What a program that was killed left
    there goes first."""
    above = copy_of(url, "out").parent
    above.mkdir(exist_ok=True)
    own = above / "new"
    with local_lock.only_process(above):
        if own.exists():
            shutil.rmtree(own)
        own.mkdir()
        try:
            yield own / url.rstrip("/").rpartition("/")[2]
        finally:
            shutil.rmtree(own, ignore_errors=True)


def _upload(objects: Objects, path: Path, name: str, generation: int) -> None:
    try:
        objects.upload(path, name, generation)
    except ChangedError as error:
        raise UserError(
            f"{objects.url}/{name}: another program wrote it meanwhile, so it stays as it is "
            "there; name another --out"
        ) from error
