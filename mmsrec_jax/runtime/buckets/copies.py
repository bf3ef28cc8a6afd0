"""Where on this machine the copies of folders of buckets lie."""

import hashlib
import os
import tempfile
from pathlib import Path

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
    sets have that of their folder. kind: "run", ..."""
    url = url.rstrip("/")
    mark = hashlib.sha256(f"{kind} {url}".encode()).hexdigest()[:12]
    own = Path(tempfile.gettempdir()) / f"mmsrec_jax-{os.getuid()}"
    root = (_root or own).resolve()
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return root / f"{kind}-{mark}" / url.rpartition("/")[2]
