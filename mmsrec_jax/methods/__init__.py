"""The methods, by the name that `config.method` gives them."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from mmsrec_jax.runtime.config_utils import choose_name
from mmsrec_jax.runtime.settings import from_config


def run(config: ConfigDict, workdir: Path, only: Sequence[str] | None = None) -> None:
    """Runs an experiment in `workdir`: the steps of its method, or those named in `only`.

    Raises:
      UserError: a setting that is out of its range, or anything else the user can put right.
    """
    from mmsrec_jax.methods.settings import Settings  # only a run needs it

    settings = from_config(Settings, config)
    find(settings.method).run(settings, workdir, only)


def find(name: str) -> ModuleType:
    """The module whose `run(settings, workdir, only)` is the method; UserError if unknown."""
    from mmsrec_jax.methods import mmsrarec, scaling_point, sequential  # only a run needs them

    known = {"mmsrarec": mmsrarec, "sequential": sequential, "scaling": scaling_point}
    return known[choose_name(name, known, what="config.method")]
