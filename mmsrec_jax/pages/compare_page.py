"""The page of a comparison: several runs side by side, made of what `launch/evaluate.py --compare`
writes and of the runs' folders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from mmsrec_jax.evaluation.comparison.presentation import Row, headline, mean_cell
from mmsrec_jax.evaluation.report import is_shown
from mmsrec_jax.evaluation.slices import WHOLE
from mmsrec_jax.pages import curves, document, run_folder, run_page, settings
from mmsrec_jax.pages.document import Section, bar, folded, note, table
from mmsrec_jax.pages.markup import Content, Html, element, joined
from mmsrec_jax.pages.results import (
    Difference,
    gap_cell,
    metric_title,
    protocol_title,
    system_name,
)
from mmsrec_jax.pages.run_folder import RunFolder
from mmsrec_jax.runtime import disk
from mmsrec_jax.runtime.errors import UserError

FILE = "comparison.html"


def write(out: Path, workdirs: Sequence[Path], *, page: Path | None = None) -> Path:
    """Writes the page of the comparison in `out`; returns its path.

    workdirs: of the runs that are compared, in the order of `comparison.json`. page: its path,
    with links to the pages of the runs in folders below it; None is one in `out` without links.

    Raises:
      UserError: `comparison.json` is missing or damaged.
    """
    path = out / "comparison.json"
    remedy = "run launch/evaluate.py --compare again"
    found = disk.read_json(path, remedy)
    with disk.readable(path, remedy):
        rows = [Row(**row) for row in found["rows"]]
        sections = [_results(rows, found), _slices(rows)]
        names = [str(name) for name in found["runs"]][: len(workdirs)]
    runs, missing = _folders(dict(zip(names, workdirs, strict=True)))
    sections += [*_training(runs), _settings(runs, missing)]
    title, told = "Comparison", ", ".join(names)
    if page is not None:
        title, told = page.parent.name, _links(runs, page.parent)
    head = element("p", "Of ", told, ".", class_="lead")
    foot = "Numbers are those of comparison.json. This page loads nothing and runs no script."
    path = page or out / FILE
    document.write(path, document.document(title, head, sections, foot))
    return path


def _links(runs: Mapping[str, RunFolder], folder: Path) -> Html:
    """The runs by name, each with a link to its page; they lie below `folder`."""
    found: list[Content] = []
    for name, run in runs.items():
        page = (run.path / run_page.FILE).relative_to(folder)
        found += [", " if found else None, element("a", name, href=page.as_posix())]
    return joined(found)


def _folders(workdirs: Mapping[str, Path]) -> tuple[dict[str, RunFolder], list[str]]:
    """What the folders say of the runs, and why some say nothing."""
    runs, missing = {}, []
    for name, path in workdirs.items():
        try:
            runs[name] = run_folder.read(path)
        except UserError as error:
            logging.warning("comparison page without settings and curves of %s: %s", name, error)
            missing.append(f"{name}: {error}")
    return runs, missing


def _results(rows: Sequence[Row], found: Mapping[str, Any]) -> Section:
    baseline = next((row.baseline for row in rows if row.baseline), None)
    parts: list[Content] = []
    if baseline:
        seeds = " and seeds" if any(row.seeds > 1 for row in rows) else ""
        parts.append(
            note(
                f"Differences are to {baseline}, with 95% paired-bootstrap intervals over users"
                f"{seeds} ({found['resamples']:,} resamples). ▲ and ▼ mark intervals that exclude "
                f"0. Split {found['split']}, ties {found['ties']}."
            )
        )
    for protocol in dict.fromkeys(row.protocol for row in rows):
        own = [row for row in rows if row.protocol == protocol and row.slice == WHOLE]
        parts += [
            element("h3", protocol_title(protocol)),
            _main_table(own),
            folded("All metrics", _whole_table(own)),
        ]
    return Section("results", "Results", joined(parts))


def _main_table(rows: Sequence[Row]) -> Html:
    hit, gain = headline(rows)
    cells = {(row.system, row.metric): row for row in rows}
    systems = list(dict.fromkeys(row.system for row in rows))
    systems.sort(key=lambda system: -_number(cells[system, gain]))
    top = max(_number(cells[system, gain]) for system in systems) or 1.0
    lines: list[list[Content]] = []
    for system in systems:
        share = bar(_number(cells[system, gain]) / top)
        line: list[Content] = [[system_name(system), share]]
        for metric in (gain, hit):
            line += [mean_cell(cells[system, metric]), _difference(cells[system, metric])]
        lines.append(line)
    head = ["system", metric_title(gain), "difference", metric_title(hit), "difference"]
    caption = f"{rows[0].users:,} users, protocol {rows[0].protocol}, best first"
    return table(caption, head, lines)


def _whole_table(rows: Sequence[Row]) -> Html:
    cells = {(row.system, row.metric): row for row in rows}
    names = [name for name in dict.fromkeys(row.metric for row in rows) if is_shown(name)]
    lines: list[list[Content]] = []
    for system in dict.fromkeys(row.system for row in rows):
        own = [cells.get((system, name)) for name in names]
        lines.append([system, *("–" if row is None else mean_cell(row) for row in own)])
    caption = f"Every metric, protocol {rows[0].protocol}"
    return table(caption, ["system", *map(metric_title, names)], lines)


def _slices(rows: Sequence[Row]) -> Section:
    parts: list[Content] = []
    for protocol in dict.fromkeys(row.protocol for row in rows):
        own = [row for row in rows if row.protocol == protocol]
        metric = headline(own)[1]
        cells = {(row.slice, row.system): row for row in own if row.metric == metric}
        counts = dict.fromkeys((row.slice, row.users) for row in own)
        lines: list[list[Content]] = []
        for system in dict.fromkeys(system for _, system in cells):
            found = [cells.get((part, system)) for part, _ in counts]
            lines.append([system, *("–" if row is None else mean_cell(row) for row in found)])
        head = [
            [part, element("span", f"{users:,} users", class_="interval")] for part, users in counts
        ]
        caption = f"{metric_title(metric)}, protocol {protocol}"
        parts.append(table(caption, ["system", *head], lines))
    return Section("slices", "Slices", joined(parts))


def _training(runs: Mapping[str, RunFolder]) -> list[Section]:
    """The curves of the steps that two runs or more have, over each other."""
    names = dict.fromkeys(step.name for run in runs.values() for step in run.steps)
    parts: list[Content] = []
    for name in names:
        found = {
            label: series
            for label, run in runs.items()
            if (series := curves.read(run.path / name / "metrics.jsonl"))
        }
        if len(found) > 1 or (found and len(runs) == 1):
            parts += [element("h3", name), curves.overlaid(found)]
    return [Section("training", "Training", joined(parts))] if parts else []


def _settings(runs: Mapping[str, RunFolder], missing: Sequence[str]) -> Section:
    parts: list[Content] = [element("p", line, class_="note") for line in missing]
    if len(runs) > 1:
        parts.append(settings.between_runs({name: run.config for name, run in runs.items()}))
    for name, run in runs.items():
        parts += [
            element("h3", name),
            settings.machine_facts(run),
        ]
    return Section("settings", "Settings and machines", joined(parts))


def _difference(row: Row) -> Content:
    if row.difference is None or row.low is None or row.high is None:
        return "–"
    return gap_cell(Difference(row.difference, row.low, row.high))


def _number(row: Row) -> float:
    return row.value or 0.0
