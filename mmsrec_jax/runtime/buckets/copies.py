"""Where on this machine the copies of folders of buckets lie."""

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path

from mmsrec_jax.runtime.errors import UserError

SUPERSEDED = "superseded"
"""Folder of a workdir for steps that ran again with other settings."""
OF_A_RUN_ALONE = ("checkpoints", "compiled", SUPERSEDED)
"""Folders in a workdir that nobody reads but a run that goes on."""

_root: Path | None = None


def use_local_dir(folder: Path | None) -> None:
    """Where copies lie from now on; None: below the system's folder for temporary files."""
    global _root
    _root = folder


def copy_of(url: str, kind: str) -> Path:
    """The folder of this machine for the copy of a folder in a bucket, which has its name: data
    sets have that of their folder. kind: "run", ...

    Raises:
      UserError: the system's folder for temporary files holds something of another user in place of
        ours.
    """
    url = url.rstrip("/")
    mark = hashlib.sha256(f"{kind} {url}".encode()).hexdigest()[:12]
    root = _own_root() if _root is None else _root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    return root / f"{kind}-{mark}" / url.rpartition("/")[2]


def _own_root() -> Path:
    """A folder of this user. Its name is known to all, who may make it first."""
    root = Path(tempfile.gettempdir()).resolve() / f"mmsrec_jax-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        root.mkdir(mode=0o700)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UserError(f"{root}: this is no folder of this user; name another by --local_dir")
    return root
