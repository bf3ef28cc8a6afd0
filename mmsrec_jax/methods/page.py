"""The page of a run that is made again from its folder."""

from pathlib import Path

from mmsrec_jax.data import build
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.pages.run_page import RunPage
from mmsrec_jax.runtime import disk
from mmsrec_jax.runtime.settings import as_dict


def write(folder: Path) -> Path:
    """Writes the page of the run in `folder`, as far as the run is; returns its path.

    Raises:
      UserError: no run, one of an earlier version, or a file of it is damaged.
    """
    with disk.readable(folder, "run launch/train.py with this --workdir again"):
        return RunPage(folder, lambda: build.open_run(folder), as_dict(Settings())).write()
