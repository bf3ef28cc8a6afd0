"""One experiment with both methods, under several seeds, or both; and one table of all its runs."""

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from mmsrec_jax.evaluation import metrics
from mmsrec_jax.evaluation.comparison import bootstrap, compare, presentation, several
from mmsrec_jax.methods import find
from mmsrec_jax.methods.settings import BOTH, METHODS, Settings, shared
from mmsrec_jax.pages import compare_page, document, run_page
from mmsrec_jax.runtime import lock, processes, sharding
from mmsrec_jax.runtime.config_utils import differences
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.files import write_text
from mmsrec_jax.runtime.settings import as_dict, from_config
from mmsrec_jax.runtime.workdir import check_names, share

_OWN = "config.mllm_srec"  # what the second of both methods has otherwise
_READ_BY_THE_SECOND = ("understanding", "preferences", "writer", "chain")
_OF_THE_WHOLE = ("method", "mllm_srec", "seed", "seeds")


def run(
    config: ConfigDict,
    workdir: Path,
    only: Sequence[str] | None = None,
    *,
    reuse: Sequence[Path] = (),
) -> None:
    """Runs each of `runs(config)` in the folder of its name in `workdir`.

    Finished runs are skipped, as finished steps are; a step that depends on nothing in which the
    runs differ runs once. reuse: see `runtime.workdir.run_steps`.

    Writes `table.json`, see `evaluation.comparison.several`, and logs it; what
    `launch/evaluate.py --compare` writes, to `comparison`; and `report.html`, with links to the
    pages of the runs. With `only`, steps that each run takes those of which it has, there is a
    table when the evaluation is among them.

    Raises:
      UserError: as `runs`, or as `Experiment.run`.
    """
    found = {workdir / name: settings for name, settings in runs(config).items()}
    chosen = dict.fromkeys(found) if only is None else _chosen(found, only)
    for own, settings in found.items():
        if chosen[own] != []:
            with _naming(settings.method, config):
                find(settings.method).checked(settings, own, chosen[own], reuse)
    share(workdir)
    with lock.only_run(workdir):
        for steps_of in _passes(config, chosen):
            folders: list[Path] = []
            for own, steps in steps_of.items():
                if steps != []:
                    settings, others = found[own], [one for one in reuse if one != own]
                    logging.info("method %s, seed %d, in %s", settings.method, settings.seed, own)
                    with _naming(settings.method, config):
                        find(settings.method).run(
                            settings, own, steps, whole=workdir, reuse=[*folders, *others]
                        )
                folders.append(own)
        if only is None or "evaluation" in only:
            first = found[folders[0]]
            processes.from_main(lambda: _write_table(folders, first, workdir))


def runs(config: ConfigDict) -> dict[str, Settings]:
    """Settings of the runs by the name of their folder: METHOD, `seed-N` or METHOD/`seed-N`.

    Data, test users and candidates are the same in all, so that differences are paired: those of
    the first seed, unless the seeds of `config.data` and `config.evaluation` are set.

    Raises:
      UserError: what `config.mllm_srec` sets does not exist, is out of its range, or would make the
        runs incomparable.
    """
    found = {}
    for method, of_method in _of_methods(config).items():
        where = _OWN if method == METHODS[1] else "config"
        for seed, own in _of_seeds(of_method).items():
            name = "/".join(part for part in (method, seed) if part)
            found[name] = from_config(Settings, own, where)
    first, *others = found.values()
    for other in others:
        if changed := differences(shared(first), shared(other), _OWN):
            raise UserError(
                f"{changed[0]}: both methods are compared user by user, so they need the same data "
                "and candidates; set it in config alone"
            )
    return found


def _of_methods(config: ConfigDict) -> dict[str, ConfigDict]:
    """Method -> its config; of an experiment with one method "" -> its config."""
    if config.method != BOTH:
        return {"": config}
    changes = config.mllm_srec.to_dict()
    if told := [name for name in _OF_THE_WHOLE if name in changes]:
        raise UserError(f"{_OWN}.{told[0]}: it is of the whole experiment; set config.{told[0]}")
    if told := [name for name in _READ_BY_THE_SECOND if name in changes]:
        raise UserError(f"{_OWN}.{told[0]}: only MLLM-SRec reads it; set config.{told[0]}")
    found = {}
    for method in METHODS:
        own = copy.deepcopy(config)
        own.method, own.mllm_srec = method, ConfigDict()
        found[method] = own
    found[METHODS[0]].data.user_fields = ()  # which it does not read
    with own.unlocked(), own.ignore_type():  # `from_config` says what is wrong
        _change(own, changes)
    return found


def _change(config: ConfigDict, changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(config.get(name), ConfigDict) and isinstance(value, Mapping):
            _change(config[name], value)
        else:
            config[name] = value


@contextlib.contextmanager
def _naming(method: str, config: ConfigDict) -> Iterator[None]:
    """In errors of MLLM-SRec beside MMSRARec, fields have the names by which they can be set."""
    try:
        yield
    except UserError as error:
        if config.method != BOTH or method != METHODS[1]:
            raise
        said = str(error)
        for path in _paths(config.mllm_srec.to_dict()):
            said = re.sub(rf"\bconfig\.{re.escape(path)}\b", f"{_OWN}.{path}", said)
        raise UserError(said) from error


def _paths(changes: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for name, value in changes.items():
        if isinstance(value, Mapping):
            yield from _paths(value, f"{before}{name}.")
        else:
            yield before + name


def _passes(
    config: ConfigDict, chosen: Mapping[Path, list[str] | None]
) -> Iterator[Mapping[Path, list[str] | None]]:
    """Which steps of each run are next. With both methods their data comes first: what the second
    cannot use is said before the first trains."""
    if config.method == BOTH:
        yield {
            own: ["data"] if steps is None or "data" in steps else []
            for own, steps in chosen.items()
        }
    yield chosen


def _of_seeds(config: ConfigDict) -> dict[str, ConfigDict]:
    """`seed-N` -> the config with this seed; of an experiment with one seed "" -> its config."""
    found = {}
    for seed in config.seeds:
        own = copy.deepcopy(config)
        own.seeds, own.seed = (), config.seeds[0]
        for fixed in (own.data, own.data.toyshop, own.evaluation):
            fixed.seed = fixed.seed  # no longer follows
        own.seed = int(seed)
        found[f"seed-{seed}"] = own
    return found or {"": config}


def _chosen(found: Mapping[Path, Settings], only: Sequence[str]) -> dict[Path, list[str]]:
    """Of each run those steps among `only` that it has. Raises UserError when none has one."""
    steps = {
        own: find(c.method)(c, own, sharding.make_mesh(**as_dict(c.mesh))).steps()
        for own, c in found.items()
    }
    check_names([step for of_run in steps.values() for step in of_run], only)
    return {
        own: [step.name for step in of_run if step.name in only] for own, of_run in steps.items()
    }


def _write_table(folders: Sequence[Path], first: Settings, workdir: Path) -> None:
    rows, about = compare.table(
        folders,
        baseline=first.headline,
        cutoffs=first.evaluation.k,
        ties=metrics.PESSIMISTIC,
        resamples=bootstrap.RESAMPLES,
        seed=0,
    )
    out = workdir / "comparison"
    presentation.write(out, rows, about)
    document.attempt(lambda: compare_page.write(out, folders, page=workdir / run_page.FILE))
    write_text(workdir / "table.json", several.as_json(rows))
    for line in several.screen(rows).splitlines():
        logging.info("%s", line)
