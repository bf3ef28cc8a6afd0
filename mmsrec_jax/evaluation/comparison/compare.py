"""Systems of finished runs side by side: every metric, and how sure a difference is.

Results are compared user by user, so they must be of the same data, split, protocol and candidates;
what is not is refused. Several seeds of one config are one system: the bootstrap draws users and
seeds, and the standard deviation between seeds stands beside the mean.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import logging

from mmsrec_jax.data import build
from mmsrec_jax.data.records import Catalog, Histories, Split
from mmsrec_jax.evaluation import beyond_accuracy, id_map, metrics, protocols, results, slices
from mmsrec_jax.evaluation.beyond_accuracy import Training
from mmsrec_jax.evaluation.comparison import bootstrap, external, presentation
from mmsrec_jax.evaluation.comparison.presentation import Row
from mmsrec_jax.evaluation.metrics import Ranks
from mmsrec_jax.evaluation.protocols import Candidates
from mmsrec_jax.evaluation.results import Result, Setting
from mmsrec_jax.runtime import workdir as workdir_lib
from mmsrec_jax.runtime.errors import UserError

BASELINE = "popularity"  # every run has it


@dataclass(frozen=True)
class Entry:
    """One system of the comparison; several results are seeds of one config."""

    label: str
    ranks: tuple[Ranks, ...]


@dataclass(frozen=True)
class Data:
    """The prepared data of the first run."""

    catalog: Catalog
    histories: Histories
    split: Split
    training: Training


@dataclass(frozen=True)
class Predictions:
    """External files of scores by name, and the folder that their ranks are written to."""

    files: Mapping[str, Path]
    out: Path


def run(
    workdirs: Sequence[Path],
    *,
    baseline: str = BASELINE,
    cutoffs: Sequence[int] = metrics.CUTOFFS,
    ties: str = metrics.PESSIMISTIC,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
    external_files: Sequence[str] = (),
    out: Path,
) -> str:
    """Compares every system in `workdirs` and writes CSV, JSON, LaTeX and plots to `out`.

    external_files: NAME=FILE, ranked under the protocols of the first run, on its data; their ranks
    lie in `out` too. Returns the tables for the screen.

    Raises:
      UserError: as `table`, or an external file is wrong.
    """
    rows, about = table(
        workdirs,
        baseline=baseline,
        cutoffs=cutoffs,
        ties=ties,
        resamples=resamples,
        seed=seed,
        predictions=Predictions(_external_names(external_files), out),
    )
    presentation.write(out, rows, about)
    return presentation.screen(rows, about)


def table(
    workdirs: Sequence[Path],
    *,
    baseline: str,
    cutoffs: Sequence[int],
    ties: str,
    resamples: int,
    seed: int,
    predictions: Predictions | None = None,
) -> tuple[list[Row], presentation.About]:
    """Every number of the comparison, and what the numbers are of.

    Raises:
      UserError: a run is not finished or cannot be compared with the first, the baseline is in
        none, or a cut-off is beyond what competes.
    """
    if not workdirs:
        raise UserError("no run to compare; name one or more finished workdirs")
    if resamples < 1:
        raise UserError(f"--bootstrap={resamples}: at least one resample is needed")
    runs = dict(zip(_names(workdirs), map(read_results, workdirs), strict=True))
    data = _open_data(workdirs[0])
    if predictions is not None:
        of_run = next(iter(runs.values()))
        for name, path in predictions.files.items():
            runs[name] = _rank_external(name, path, workdirs[0], of_run, data, predictions.out)
    results_of = by_protocol(runs)
    settings = {protocol: common_setting(found) for protocol, found in results_of.items()}
    entries = {protocol: _entries(found) for protocol, found in results_of.items()}
    _check(baseline, cutoffs, entries)
    rows = []
    for protocol, systems in entries.items():
        rows += _measure(systems, protocol, data, baseline, cutoffs, ties, resamples, seed)
    about = presentation.About(
        runs=tuple(runs),
        split=data.split.kind,
        settings=settings,
        ties=ties,
        resamples=resamples,
        seed=seed,
    )
    return rows, about


def parse_cutoffs(texts: Sequence[str]) -> tuple[int, ...]:
    """Ascending cut-offs from the flag's texts. Raises UserError when one is no count."""
    counts = [re.fullmatch(r"\s*[0-9]{1,7}\s*", text) and int(text) for text in texts]
    if not all(counts):
        raise UserError(f"--k={','.join(texts)}: write cut-offs as counts, e.g. --k=5,10")
    return tuple(sorted({int(text) for text in texts}))


# --- what is compared -----------------------------------------------------------------------------


def _names(workdirs: Sequence[Path]) -> list[str]:
    """Folder names where they are all different, else the ends of the paths."""
    resolved = [path.resolve() for path in workdirs]
    if len(set(resolved)) < len(resolved):
        raise UserError("a run is named twice; name each workdir once")
    short = [path.name for path in resolved]
    if len(set(short)) == len(short):
        return short
    common = os.path.commonpath([path.parent for path in resolved])
    return [str(path.relative_to(common)) for path in resolved]


def read_results(workdir: Path) -> list[Result]:
    """Every ranks file of a run.

    Raises:
      UserError: there is no such run, it has not finished, or its files are damaged.
    """
    if not workdir.is_dir():
        raise UserError(f"{workdir}: no such workdir; name the folder of a finished run")
    workdir_lib.finished(workdir, "evaluation", same=("data",))
    return results.read_all(workdir / "evaluation")


def _open_data(workdir: Path) -> Data:
    catalog, histories, split = build.open_run(workdir)
    training = Training.of(histories, split, len(catalog))
    return Data(catalog, histories, split, training)


def by_protocol(runs: Mapping[str, Sequence[Result]]) -> dict[str, list[tuple[str, Result]]]:
    """Protocol -> (run, result), the full catalog first."""
    found: dict[str, list[tuple[str, Result]]] = {}
    first, *others = runs
    known = {result.setting.protocol for result in runs[first]}
    for name in others:
        own = {result.setting.protocol for result in runs[name]}
        if not own & known:
            raise UserError(
                f"{name} has ranks under {', '.join(sorted(own))}, {first} under "
                f"{', '.join(sorted(known))}: nothing to compare; run both with the same "
                "config.evaluation.negatives"
            )
    for name, of_run in runs.items():
        for result in of_run:
            found.setdefault(result.setting.protocol, []).append((name, result))
    return dict(sorted(found.items(), key=lambda pair: (pair[0] != protocols.FULL, pair[0])))


_REMEDIES = {
    "data": "prepare both from the same files with the same config.data, its seed included",
    "split": "give both the same config.data.split",
    "candidates": "give both the same config.evaluation.users, negatives and seed",
}


def common_setting(found: Sequence[tuple[str, Result]]) -> Setting:
    """The one setting of all results. Raises UserError naming two that differ and in what."""
    (first_run, first), *others = found
    for run_name, result in others:
        if differ := first.setting.differences(result.setting):
            raise UserError(
                f"{first_run} and {run_name} cannot be compared under {first.setting.protocol}: "
                f"their {differ[0]} differ ({first.path} and {result.path}); "
                f"{_REMEDIES[differ[0]]}"
            )
        same = np.array_equal(first.ranks.users, result.ranks.users)
        if not (same and np.array_equal(first.ranks.targets, result.ranks.targets)):
            raise UserError(
                f"{result.path}: rows are not those of {first.path} although both say so; the file "
                "is damaged, run the step evaluation again"
            )
    return first.setting


def _entries(found: Sequence[tuple[str, Result]]) -> list[Entry]:
    """Systems by label.

    Results of one name that rank every target alike are one (popularity is the same in every run);
    those of one config and different seeds are seeds of one system; others carry their run's name.
    """
    distinct: list[tuple[str, Result]] = []
    for name, result in found:
        if not any(
            result.system == r.system and _alike(result.ranks, r.ranks) for _, r in distinct
        ):
            distinct.append((name, result))
    groups: dict[tuple, list[tuple[str, Result]]] = {}
    for name, result in distinct:
        groups.setdefault((result.system, result.config), []).append((name, result))
    split_up = []
    for group in groups.values():
        seeds = {result.seed for _, result in group}
        split_up += [group] if len(seeds) == len(group) else [[one] for one in group]
    names = [group[0][1].system for group in split_up]
    return [
        Entry(
            system if names.count(system) == 1 else f"{system}:{'+'.join(run for run, _ in group)}",
            tuple(result.ranks for _, result in group),
        )
        for system, group in zip(names, split_up, strict=True)
    ]


def _alike(first: Ranks, second: Ranks) -> bool:
    names = ("ranks", "ties", "top")
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in names)


def _check(baseline: str, cutoffs: Sequence[int], entries: Mapping[str, Sequence[Entry]]) -> None:
    for protocol, systems in entries.items():
        try:
            metrics.check_cutoffs(cutoffs, int(systems[0].ranks[0].candidates.max(initial=0)))
        except UserError as error:
            raise UserError(f"{protocol}: {error} (--k)") from error
    labels = {entry.label for systems in entries.values() for entry in systems}
    if baseline not in labels:
        several = sorted(label for label in labels if label.startswith(f"{baseline}:"))
        if several:
            raise UserError(
                f"--baseline={baseline}: the runs have several that differ; choose one of "
                f"{', '.join(several)}"
            )
        raise UserError(f"--baseline={baseline} is none of {', '.join(sorted(labels))}")


# --- external predictions -----------------------------------------------------------------------


def _external_names(pairs: Sequence[str]) -> dict[str, Path]:
    named = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (name and equals and path) or name in named or not results.is_name(name):
            raise UserError(f"--external={pair}: write --external=NAME=FILE, each NAME once")
        named[name] = Path(path)
    return named


def _rank_external(
    name: str, path: Path, workdir: Path, of_run: Sequence[Result], data: Data, out: Path
) -> list[Result]:
    """Results of an external file under every protocol of the run, written to `out`."""
    scores = external.read(path, data.histories.users, data.catalog.ids)
    id_map.write_items(out, data.catalog.ids)
    id_map.write_users(out, data.histories.users)
    first = {result.setting.protocol: result for result in reversed(of_run)}
    found = []
    for protocol, result in sorted(first.items()):
        if protocol == protocols.FULL:
            rows = _test_rows(data.split, result)
            ranks = external.full(name, scores, data.histories, rows, top=result.ranks.top.shape[1])
        else:
            file = protocols.candidates_file(workdir / "evaluation", protocol)
            frozen = Candidates.read(file)
            if frozen.digest != result.setting.candidates:
                raise UserError(
                    f"{file}: not the candidates of "
                    f"{result.path}; delete {workdir}/evaluation and run launch/train.py again"
                )
            ranks = external.sampled(name, scores, frozen)
        if unscored := external.missing(scores, ranks):
            logging.warning(
                "%s, %s: no score for %s of %s targets, they rank last",
                path, protocol, f"{unscored:,}", f"{len(ranks):,}",
            )  # fmt: skip
        file = out / f"ranks-{name}-{protocol}.parquet"
        results.write(
            file, ranks, system=name, setting=result.setting, seed=0, config="external",
        )  # fmt: skip
        found.append(results.read(file))
    return found


def _test_rows(split: Split, result: Result) -> np.ndarray:
    """int32[R, 2]: the test rows of the users that a result ranked, in its order."""
    order = np.argsort(split.test[:, 0], kind="stable")
    rows = split.test[order[np.searchsorted(split.test[order, 0], result.ranks.users)]]
    if protocols.full_digest(rows) != result.setting.candidates:
        raise UserError(
            f"{result.path}: its users are not test users of the run's data; run launch/train.py "
            "with this --workdir again"
        )
    return rows


# --- measuring ------------------------------------------------------------------------------------


def _measure(
    entries: Sequence[Entry],
    protocol: str,
    data: Data,
    baseline: str,
    cutoffs: Sequence[int],
    ties: str,
    resamples: int,
    seed: int,
) -> list[Row]:
    """Rows of one protocol: the whole, then each slice."""
    labels = [entry.label for entry in entries]
    base = labels.index(baseline) if baseline in labels else None
    listed = min(ranks.top.shape[1] for entry in entries for ranks in entry.ranks)
    of_lists = [k for k in cutoffs if k <= listed]
    names = metrics.names(cutoffs) + [
        f"{name}@{k}" for name in beyond_accuracy.PER_ROW for k in of_lists
    ]
    values = [
        np.stack([_per_row(ranks, names, data.training, ties) for ranks in entry.ranks])
        for entry in entries
    ]
    rows = []
    for part, inside in slices.slices(entries[0].ranks[0], data.training, data.split).items():
        of_part = [of_entry[:, :, inside] for of_entry in values]
        rows += _rows(protocol, part, labels, names, of_part, base, resamples, seed)
        if part == slices.WHOLE:
            rows += _rows_of_lists(protocol, entries, base, of_lists, data.training)
    return rows


def _per_row(ranks: Ranks, names: Sequence[str], training: Training, ties: str) -> np.ndarray:
    """float64[M, n]."""
    return np.stack(
        [
            getattr(beyond_accuracy, name)(ranks.top, int(k), training)
            if name in beyond_accuracy.PER_ROW
            else metrics.per_row(ranks, metric, ties=ties)
            for metric in names
            for name, _, k in [metric.partition("@")]
        ]
    )


def _rows(
    protocol: str,
    part: str,
    labels: Sequence[str],
    names: Sequence[str],
    values: Sequence[np.ndarray],
    base: int | None,
    resamples: int,
    seed: int,
) -> list[Row]:
    """values: float64[seeds, M, n] of every system. A slice without users has no values."""
    users = values[0].shape[-1]
    of_users = np.stack([of_entry.mean(0) for of_entry in values])
    shape = of_users.shape[:2]
    low = high = difference = np.full(shape, np.nan)
    if users and base is not None:
        difference = (of_users - of_users[base]).mean(-1)
        low, high = bootstrap.differences(values, base, resamples=resamples, seed=seed)
    rows = []
    for e, label in enumerate(labels):
        seeds = values[e].mean(-1) if users else np.full((len(values[e]), len(names)), np.nan)
        rows += [
            Row.of(
                protocol, part, users, label, name, seeds[:, m],
                baseline=None if base in (None, e) else labels[base],
                difference=difference[e, m], low=low[e, m], high=high[e, m],
            )
            for m, name in enumerate(names)
        ]  # fmt: skip
    return rows


def _rows_of_lists(
    protocol: str,
    entries: Sequence[Entry],
    base: int | None,
    cutoffs: Sequence[int],
    training: Training,
) -> list[Row]:
    """Metrics of all lists together. No interval: resampled users repeat each other's items."""
    rows = []
    for name in beyond_accuracy.OF_ALL_ROWS:
        for k in cutoffs:
            measure = getattr(beyond_accuracy, name)
            seeds = [
                np.array([measure(ranks.top, k, training) for ranks in entry.ranks])
                for entry in entries
            ]
            rows += [
                Row.of(
                    protocol, slices.WHOLE, len(entry.ranks[0]), entry.label, f"{name}@{k}",
                    seeds[e], baseline=None if base in (None, e) else entries[base].label,
                    difference=np.nan if base is None else seeds[e].mean() - seeds[base].mean(),
                )
                for e, entry in enumerate(entries)
            ]  # fmt: skip
    return rows
