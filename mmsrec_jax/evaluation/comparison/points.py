"""The points of a sweep side by side: every metric of one system at each, with intervals."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmsrec_jax.evaluation import metrics
from mmsrec_jax.evaluation.comparison import bootstrap, compare
from mmsrec_jax.evaluation.comparison.presentation import headline_of, number
from mmsrec_jax.evaluation.metrics import Ranks
from mmsrec_jax.evaluation.report import aligned, is_shown
from mmsrec_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Measured:
    """One point whose runs are finished.

    Attributes:
      name: of the point.
      system: whose ranks count, the one that the experiment is about.
      folders: of its runs, one a seed.
    """

    name: str
    system: str
    folders: tuple[Path, ...]


@dataclasses.dataclass(frozen=True)
class PointRow:
    """One number: a metric at one point under one protocol.

    value is the mean over users and seeds, low and high its 95% bootstrap interval over both, sd
    the standard deviation between seeds (None for one seed). difference is to the `reference`, the
    first point, with its paired interval; None at that point itself.
    """

    point: str
    system: str
    protocol: str
    users: int
    seeds: int
    metric: str
    value: float
    low: float
    high: float
    sd: float | None
    reference: str | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None


def table(
    points: Sequence[Measured],
    cutoffs: Sequence[int],
    *,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> list[PointRow]:
    """Every metric of every point under every protocol, the full catalog first.

    Raises:
      UserError: a run is not finished, its files are damaged, or its users or candidates are not
        those of the first run; a point has no ranks of its system.
    """
    by_run, owner = {}, {}
    for point in points:
        for folder in point.folders:
            found = [r for r in compare.read_results(folder) if r.system == point.system]
            if not found:
                raise UserError(f"{folder}: has no ranks of {point.system}; delete its evaluation")
            by_run[str(folder)], owner[str(folder)] = found, point.name
    names = [name for name in metrics.names(cutoffs) if is_shown(name)]
    systems = {point.name: point.system for point in points}
    rows = []
    for protocol, results in compare.by_protocol(by_run).items():
        compare.common_setting(results)
        ranks: dict[str, list[Ranks]] = {}
        for run, result in results:
            ranks.setdefault(owner[run], []).append(result.ranks)
        values = {
            point: np.stack([_per_row(one, names) for one in seeds])
            for point, seeds in ranks.items()
        }
        rows += _rows(protocol, systems, names, values, points[0].name, resamples, seed)
    return rows


def _per_row(ranks: Ranks, names: Sequence[str]) -> np.ndarray:
    """float64[M, n]."""
    return np.stack([metrics.per_row(ranks, name, ties=metrics.PESSIMISTIC) for name in names])


def _rows(
    protocol: str,
    systems: Mapping[str, str],
    names: Sequence[str],
    values: Mapping[str, np.ndarray],
    reference: str,
    resamples: int,
    seed: int,
) -> list[PointRow]:
    """values: float64[S, M, n] of each point that has ranks under the protocol."""
    points, of_points = list(values), list(values.values())
    base = points.index(reference) if reference in points else None
    (low, high), gaps = bootstrap.means_and_differences(
        of_points, base, resamples=resamples, seed=seed
    )
    rows = []
    for p, point in enumerate(points):
        own = of_points[p].mean(-1)
        spread = own.std(0, ddof=1) if len(own) > 1 else None
        for m, name in enumerate(names):
            compared: tuple[Any, ...] = (None,) * 4
            if base is not None and gaps is not None and p != base:
                difference = own[:, m].mean() - of_points[base].mean(-1)[:, m].mean()
                compared = (reference, float(difference), *(float(g[p, m]) for g in gaps))
            rows.append(
                PointRow(
                    point, systems[point], protocol, of_points[p].shape[-1], len(own), name,
                    float(own[:, m].mean()), float(low[p, m]), float(high[p, m]),
                    None if spread is None else float(spread[m]), *compared,
                )
            )  # fmt: skip
    return rows


def as_csv(rows: Sequence[PointRow], settings: Mapping[str, Mapping[str, Any]]) -> str:
    """A line a row; after the point's name a column for each field that a point sets, empty where
    it sets none. settings: by point."""
    fields = list(dict.fromkeys(field for sets in settings.values() for field in sets))
    columns = [field.name for field in dataclasses.fields(PointRow)]
    text = io.StringIO()
    writer = csv.DictWriter(text, [columns[0], *fields, *columns[1:]], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**settings[row.point], **dataclasses.asdict(row)})
    return text.getvalue()


def screen(rows: Sequence[PointRow]) -> str:
    """For every protocol a line a point: means, and differences to the first point, both with
    95% intervals."""
    parts = []
    for protocol in dict.fromkeys(row.protocol for row in rows):
        own = [row for row in rows if row.protocol == protocol]
        shown = headline(own)
        cells = {(row.point, row.metric): row for row in own}
        reference = next((row.reference for row in own if row.reference), None)
        head = ["point", "system", "seeds"]
        for metric in shown:
            head += [metric, *([f"- {reference}"] if reference else [])]
        lines = [head]
        for point in dict.fromkeys(row.point for row in own):
            first = cells[point, shown[0]]
            line = [point, first.system, str(first.seeds)]
            for metric in shown:
                cell = cells[point, metric]
                line += [mean_cell(cell), *([difference_cell(cell)] if reference else [])]
            lines.append(line)
        parts.append(f"{protocol}, {own[0].users:,} users\n" + aligned(lines, left=2))
    return "\n\n".join(parts)


def headline(rows: Sequence[PointRow]) -> list[str]:
    """The two metrics that count: NDCG first."""
    return headline_of(row.metric for row in rows)[::-1]


def mean_cell(row: PointRow) -> str:
    """As "0.1234 [0.1100, 0.1370]"."""
    return f"{number(row.value)} [{number(row.low)}, {number(row.high)}]"


def difference_cell(row: PointRow) -> str:
    """As "+0.0123 [+0.0020, +0.0226]"; empty at the first point."""
    if row.difference is None or row.difference_low is None or row.difference_high is None:
        return ""
    low, high = (number(bound, "+") for bound in (row.difference_low, row.difference_high))
    return f"{number(row.difference, '+')} [{low}, {high}]"
