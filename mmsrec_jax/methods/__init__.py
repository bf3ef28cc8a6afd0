"""The methods, by the name that `config.method` gives them."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from mmsrec_jax.runtime import processes
from mmsrec_jax.runtime.buckets import run as buckets
from mmsrec_jax.runtime.config_utils import choose_name
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import from_config
from mmsrec_jax.runtime.workdir import runs_in

if TYPE_CHECKING:
    from mmsrec_jax.methods.experiment import Experiment


def run(
    config: ConfigDict,
    workdir: str | Path,
    only: Sequence[str] | None = None,
    *,
    reuse: Sequence[str | Path] = (),
) -> None:
    """Runs an experiment in `workdir`, a folder or `gs://BUCKET/FOLDER`: the steps of its method,
    or those named in `only`; with `config.seeds` under each of them, with both methods each.

    reuse: folders of other runs, also in buckets, see `runtime.workdir.run_steps`.

    Raises:
      UserError: a setting that is out of its range, or anything else the user can put right.
    """
    from mmsrec_jax.methods.settings import BOTH, Settings  # only a run needs it

    settings = from_config(Settings, config)
    with contextlib.ExitStack() as stack:
        others = [Path(one) for one in processes.from_main(lambda: _others(reuse, stack))]
        folder = stack.enter_context(buckets.opened(workdir))
        if settings.seeds or settings.method == BOTH:
            from mmsrec_jax.methods import several

            several.run(config, folder, only, reuse=others)
        else:
            find(settings.method).run(settings, folder, only, reuse=others)


def _others(given: Sequence[str | Path], stack: contextlib.ExitStack) -> list[str]:
    """Where the main process reads the other runs, and those in sub-folders of them."""
    found = []
    for one in given:
        folder = stack.enter_context(buckets.only_reading(one))
        if not folder.is_dir():
            raise UserError(f"--reuse={one}: no such folder; name the --workdir of another run")
        folder = folder.resolve()
        found += [str(folder / each) for each in ("", *runs_in(folder))]
    return found


def find(name: str) -> type["Experiment"]:
    """The class whose steps are the method; UserError if unknown."""
    from mmsrec_jax.methods.mllm_srec import MLLMSRec  # only a run needs them
    from mmsrec_jax.methods.mmsrarec import MMSRARec
    from mmsrec_jax.methods.scaling_point import ScalingPoint
    from mmsrec_jax.methods.sequential import Sequential

    known = {
        "mmsrarec": MMSRARec,
        "mllm_srec": MLLMSRec,
        "sequential": Sequential,
        "scaling": ScalingPoint,
    }
    return known[choose_name(name, known, what="config.method")]
