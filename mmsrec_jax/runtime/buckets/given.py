"""Data, models, single files and finished runs that are only read: copied once to every machine."""

import functools
import os
from pathlib import Path

from absl import logging

from mmsrec_jax.runtime.buckets.copies import OF_A_RUN_ALONE, copy_of
from mmsrec_jax.runtime.buckets.mirror import Mirror
from mmsrec_jax.runtime.buckets.objects import is_url
from mmsrec_jax.runtime.errors import UserError


def local(given: str | os.PathLike[str]) -> Path:
    """A file or folder on this machine: `given` itself, or the copy of what it names in a bucket.

    The copy is compared with the bucket once in a process. Its files have the times of the objects,
    so that all machines digest them alike.

    Raises:
      UserError: nothing is there, or the bucket cannot be read.
    """
    return _copied(str(given).rstrip("/"), "folder", ()) if is_url(given) else Path(given)


def local_run(given: str | os.PathLike[str]) -> Path:
    """The same of a finished run, without what nobody but the run itself reads."""
    return (
        _copied(str(given).rstrip("/"), "of-run", OF_A_RUN_ALONE) if is_url(given) else Path(given)
    )


@functools.cache
def _copied(url: str, kind: str, skipped: tuple[str, ...]) -> Path:
    folder = Mirror(url, copy_of(url, kind), skipped)
    if folder.pull():
        logging.info("%s: read in %s", url, folder.local)
        return folder.local
    above, _, name = url.rpartition("/")
    if name and is_url(above):
        single = Mirror(above, copy_of(url, "file"))
        if single.pull_file(name):
            return single.local / name
    raise UserError(f"{url}: nothing is there; correct the path")
