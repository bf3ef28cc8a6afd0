"""A comparison on the screen, as CSV, JSON and LaTeX, and as a forest plot of the differences."""

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mmsrec_jax.evaluation import figures
from mmsrec_jax.evaluation.report import aligned, is_shown
from mmsrec_jax.evaluation.results import Setting
from mmsrec_jax.evaluation.slices import WHOLE
from mmsrec_jax.runtime.files import write_text

_HEADLINE = 10  # the cut-off of slices and plots, or the largest there is
_LEAK = "leave_one_out: other users' training interactions may be later than a target"


@dataclasses.dataclass(frozen=True)
class Row:
    """One number: a system's metric on one slice under one protocol.

    value is the mean over users and seeds, sd its standard deviation between seeds (None for one
    seed). difference to the baseline, low and high its 95% interval. None where there is nothing:
    no users, no baseline, the baseline itself, a metric of all lists together.
    """

    protocol: str
    slice: str
    users: int
    system: str
    seeds: int
    metric: str
    value: float | None
    sd: float | None
    baseline: str | None
    difference: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(
        cls,
        protocol: str,
        part: str,
        users: int,
        system: str,
        metric: str,
        seeds: np.ndarray,
        *,
        baseline: str | None,
        difference: float = np.nan,
        low: float = np.nan,
        high: float = np.nan,
    ) -> "Row":
        """seeds float64[S]: the metric under every seed; NaN becomes None."""
        sd = seeds.std(ddof=1) if len(seeds) > 1 else np.nan
        numbers = (seeds.mean(), sd)
        compared = (difference, low, high) if baseline else (np.nan,) * 3
        value, deviation, gain, lower, upper = (
            None if np.isnan(x) else float(x) for x in (*numbers, *compared)
        )
        return cls(
            protocol, part, users, system, len(seeds), metric, value, deviation, baseline,
            gain, lower, upper,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class About:
    """What the numbers are of."""

    runs: tuple[str, ...]
    split: str
    settings: Mapping[str, Setting]
    ties: str
    resamples: int
    seed: int


def write(out: Path, rows: Sequence[Row], about: About) -> None:
    """comparison.csv and .json with every row; PROTOCOL.tex, and .png and .svg of differences."""
    table = io.StringIO()
    writer = csv.DictWriter(table, [f.name for f in dataclasses.fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    write_text(out / "comparison.csv", table.getvalue())
    whole = dataclasses.asdict(about) | {"rows": [dataclasses.asdict(row) for row in rows]}
    write_text(out / "comparison.json", json.dumps(whole, indent=1) + "\n")
    for protocol in about.settings:
        own = [row for row in rows if row.protocol == protocol]
        write_text(out / f"{protocol}.tex", latex(own, about))
        if any(row.low is not None for row in own):
            _plot(out / protocol, own, about)


def screen(rows: Sequence[Row], about: About) -> str:
    """For every protocol: all metrics, the differences with their intervals, the slices."""
    parts = []
    for protocol in about.settings:
        own = [row for row in rows if row.protocol == protocol]
        whole = [row for row in own if row.slice == WHOLE]
        parts.append(
            f"{protocol}: {whole[0].users:,} users, split {about.split}, ties {about.ties}"
        )
        if about.split == "leave_one_out":
            parts[-1] += f"\n({_LEAK})"
        parts.append(_by_metric(whole, mean_cell))
        compared = [row for row in whole if row.low is not None]
        if compared:
            drawn = "users and seeds" if any(row.seeds > 1 for row in whole) else "users"
            parts.append(
                f"difference to {compared[0].baseline}, 95% paired bootstrap over {drawn} "
                f"({about.resamples:,} resamples, seed {about.seed})\n"
                + _by_metric(compared, difference_cell)
            )
        parts.append(_slices(own))
    return "\n\n".join(parts)


def latex(rows: Sequence[Row], about: About) -> str:
    """A booktabs table of one protocol: metrics by systems, * where the interval excludes 0."""
    whole = [row for row in rows if row.slice == WHOLE and is_shown(row.metric)]
    systems = list(dict.fromkeys(row.system for row in whole))
    lines = [
        f"% {whole[0].protocol}, {whole[0].users} users, split {about.split}, ties {about.ties}; "
        f"* 95% paired-bootstrap interval of the difference to the baseline excludes 0",
        r"\begin{tabular}{l" + "r" * len(systems) + "}",
        r"\toprule",
        " & ".join(["metric", *map(_escaped, systems)]) + r" \\",
        r"\midrule",
    ]
    for metric in dict.fromkeys(row.metric for row in whole):
        cells = {row.system: row for row in whole if row.metric == metric}
        lines.append(" & ".join([metric, *(_latex_cell(cells[s]) for s in systems)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _by_metric(rows: Sequence[Row], cell: Callable[[Row], str]) -> str:
    """Text: a line for each metric, a column for each system."""
    rows = [row for row in rows if is_shown(row.metric)]
    systems = list(dict.fromkeys(row.system for row in rows))
    cells = {(row.metric, row.system): cell(row) for row in rows}
    metrics = dict.fromkeys(row.metric for row in rows)
    lines = [[m, *(cells.get((m, system), "") for system in systems)] for m in metrics]
    return aligned([["metric", *systems], *lines], left=1)


def _slices(rows: Sequence[Row]) -> str:
    shown = headline(rows)
    rows = [row for row in rows if row.metric in shown]
    systems = list(dict.fromkeys(row.system for row in rows))
    cells = {(row.slice, row.metric, row.system): row for row in rows}
    lines = [["slice", "users", "metric", *systems]]
    for part, users in dict.fromkeys((row.slice, row.users) for row in rows):
        lines += [
            [part, f"{users:,}", metric, *(mean_cell(cells[part, metric, s]) for s in systems)]
            for metric in shown
        ]
    return aligned(lines, left=1)


def headline(rows: Sequence[Row]) -> list[str]:
    """The metrics of slices and plots: at 10, or at the largest cut-off."""
    return headline_of(row.metric for row in rows)


def headline_of(metrics: Iterable[str]) -> list[str]:
    """`headline` by the names of the metrics that were measured."""
    cutoffs = [int(name.partition("@")[2]) for name in metrics if name.startswith("hr@")]
    k = _HEADLINE if _HEADLINE in cutoffs else max(cutoffs)
    return [f"hr@{k}", f"ndcg@{k}"]


def _plot(path: Path, rows: Sequence[Row], about: About) -> None:
    shown = headline(rows)
    rows = [row for row in rows if row.slice == WHOLE and row.low is not None]
    systems = list(dict.fromkeys(row.system for row in rows))

    def draw(figure: Figure) -> None:
        for axis, metric in zip(figure.subplots(1, 2, sharey=True), shown, strict=True):
            own = {row.system: row for row in rows if row.metric == metric}
            for y, system in enumerate(systems):
                row = own[system]
                axis.plot([row.low, row.high], [y, y], color="black")
                axis.plot([row.difference], [y], "o", color="black")
            axis.axvline(0, color="gray", linestyle=":")
            axis.set(title=metric, xlabel=f"difference to {rows[0].baseline}")
            axis.set_yticks(range(len(systems)), systems)
        axis.invert_yaxis()
        figure.suptitle(
            f"{path.name}, {rows[0].users:,} users, 95% paired-bootstrap intervals", fontsize=10
        )

    figures.write(path, (9, 1.4 + 0.35 * len(systems)), draw)


def mean_cell(row: Row) -> str:
    """As "0.1234 ± 0.0012"; the deviation only of several seeds."""
    if row.value is None:
        return "-"
    return number(row.value) + (f" ± {number(row.sd)}" if row.sd is not None else "")


def difference_cell(row: Row) -> str:
    """As "+0.0123 [+0.0020, +0.0226]"; empty where nothing is compared."""
    if row.difference is None or row.low is None or row.high is None:
        return ""
    return f"{number(row.difference, '+')} [{number(row.low, '+')}, {number(row.high, '+')}]"


def _latex_cell(row: Row) -> str:
    if row.value is None:
        return "--"
    text = number(row.value) + (rf" $\pm$ {number(row.sd)}" if row.sd is not None else "")
    if row.low is None or row.high is None:
        return text
    return text + ("*" if row.low > 0 or row.high < 0 else "")


def number(value: float, sign: str = "") -> str:
    """Four decimals, two for counts and bits."""
    return f"{value:{sign}.{4 if abs(value) < 2 else 2}f}"


def _escaped(text: str) -> str:
    for character in "\\&%$#_{}":
        text = text.replace(character, "\\" + character)
    return text
