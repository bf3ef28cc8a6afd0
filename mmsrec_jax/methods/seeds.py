"""One experiment under several seeds, and one table of them all."""

import copy
from collections.abc import Sequence
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from mmsrec_jax.evaluation import metrics
from mmsrec_jax.evaluation.comparison import bootstrap, compare, presentation, several
from mmsrec_jax.methods.experiment import Experiment
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.pages import compare_page, document
from mmsrec_jax.runtime import lock, processes
from mmsrec_jax.runtime.files import write_text
from mmsrec_jax.runtime.settings import from_config
from mmsrec_jax.runtime.workdir import share


def run(
    method: type[Experiment],
    config: ConfigDict,
    workdir: Path,
    only: Sequence[str] | None = None,
    *,
    reuse: Sequence[Path] = (),
) -> None:
    """Runs `config` once under each of `config.seeds`, in the folders `seed-N` of `workdir`.

    Data, test users and candidates are the same in all: those of the first seed, unless the seeds
    of `config.data` and `config.evaluation` are set. So differences are paired. Finished runs are
    skipped, as finished steps are; a step that depends on no seed runs once. reuse: see
    `runtime.workdir.run_steps`.

    Writes `table.json`, see `evaluation.comparison.several`, and logs it; and what
    `launch/evaluate.py --compare` writes, to `comparison`. With `only`, steps of each run that are
    named, there is a table when the evaluation is among them.
    """
    settings = [from_config(Settings, config) for config in configs(config)]
    folders = [workdir / folder(c.seed) for c in settings]
    share(workdir)
    with lock.only_run(workdir):
        for place, (c, own) in enumerate(zip(settings, folders, strict=True)):
            logging.info("seed %d, in %s", c.seed, own)
            known = [*folders[:place], *(one for one in reuse if one != own)]
            method.run(c, own, only, compiled=workdir / "compiled", reuse=known)
        if only is None or "evaluation" in only:
            processes.from_main(lambda: _write_table(folders, settings[0], workdir))


def folder(seed: int) -> str:
    """Name of the folder of one seed's run."""
    return f"seed-{seed}"


def configs(config: ConfigDict) -> list[ConfigDict]:
    """The configs of the runs, each with one seed."""
    found = []
    for seed in config.seeds:
        own = copy.deepcopy(config)
        own.seeds, own.seed = (), config.seeds[0]
        for fixed in (own.data, own.data.toyshop, own.evaluation):
            fixed.seed = fixed.seed  # no longer follows
        own.seed = int(seed)
        found.append(own)
    return found


def _write_table(folders: Sequence[Path], settings: Settings, workdir: Path) -> None:
    rows, about = compare.table(
        folders,
        baseline=settings.headline,
        cutoffs=settings.evaluation.k,
        ties=metrics.PESSIMISTIC,
        resamples=bootstrap.RESAMPLES,
        seed=0,
    )
    presentation.write(workdir / "comparison", rows, about)
    document.attempt(lambda: compare_page.write(workdir / "comparison", folders))
    write_text(workdir / "table.json", several.as_json(rows))
    for line in several.screen(rows).splitlines():
        logging.info("%s", line)
