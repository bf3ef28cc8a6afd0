"""The page of a run that is made again from its folder."""

from pathlib import Path

from mmsrec_jax.data import build
from mmsrec_jax.data.build import DataSettings
from mmsrec_jax.data.records import Dataset
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.pages.run_page import RunPage
from mmsrec_jax.runtime import disk, workdir
from mmsrec_jax.runtime.settings import as_dict, from_record


def write(folder: Path) -> Path:
    """Writes the page of the run in `folder`, as far as the run is; returns its path.

    Raises:
      UserError: no run, one of an earlier version, or a file of it is damaged.
    """

    def dataset() -> Dataset:
        recorded = workdir.finished(folder, "data")["data"]
        settings = from_record(DataSettings, recorded, "config.data")
        return build.open_built(settings, folder / "data")

    with disk.readable(folder, "run launch/train.py with this --workdir again"):
        return RunPage(folder, dataset, as_dict(Settings())).write()
