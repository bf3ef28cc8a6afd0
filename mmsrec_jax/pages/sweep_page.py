"""The page of a sweep, made of its `sweep.json`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsrec_jax.evaluation.comparison import points
from mmsrec_jax.evaluation.comparison.points import PointRow
from mmsrec_jax.pages import document
from mmsrec_jax.pages.charts import Interval, interval_chart
from mmsrec_jax.pages.document import Section, folded, note, table
from mmsrec_jax.pages.markup import Content, Html, clipped, element, joined
from mmsrec_jax.pages.results import Difference, gap_cell, metric_title, protocol_title
from mmsrec_jax.runtime.progress import clock

FILE = "sweep.html"
_LONGEST = 200


def write(workdir: Path, about: Mapping[str, Any], rows: Sequence[PointRow]) -> Path:
    """Writes the page in the sweep's folder; returns its path. about: as in `sweep.json`."""
    sections = [_results(rows), _points(about)]
    head = element("p", f"Points of {about['config']}, from {about['sweep']}.", class_="lead")
    foot = "Numbers are those of sweep.json. This page loads nothing and runs no script."
    title = f"Sweep {Path(about['sweep']).stem}"
    document.write(workdir / FILE, document.document(title, head, sections, foot))
    return workdir / FILE


def _results(rows: Sequence[PointRow]) -> Section:
    several = any(row.seeds > 1 for row in rows)
    over = "users and seeds" if several else "users"
    reference = next((row.reference for row in rows if row.reference), None)
    parts: list[Content] = [
        note(
            f"Means with 95% bootstrap intervals over {over}. ",
            f"Differences are to {reference}, of the same users. ▲ and ▼ mark intervals that "
            "exclude 0." if reference else None,
        )
    ]  # fmt: skip
    for protocol in dict.fromkeys(row.protocol for row in rows):
        own = [row for row in rows if row.protocol == protocol]
        parts += [
            element("h3", protocol_title(protocol)),
            element("div", [_chart(own, name) for name in points.headline(own)], class_="charts"),
            _main_table(own),
            folded("All metrics", _whole_table(own)),
        ]
    return Section("results", "Results", joined(parts))


def _chart(rows: Sequence[PointRow], metric: str) -> Html:
    shown = [Interval(r.point, r.value, r.low, r.high) for r in rows if r.metric == metric]
    return interval_chart(metric_title(metric), shown)


def _main_table(rows: Sequence[PointRow]) -> Html:
    cells = {(row.point, row.metric): row for row in rows}
    shown = points.headline(rows)
    lines: list[list[Content]] = []
    for point in dict.fromkeys(row.point for row in rows):
        first = cells[point, shown[0]]
        line: list[Content] = [point, first.system, first.seeds]
        for metric in shown:
            line += [points.mean_cell(cells[point, metric]), _difference(cells[point, metric])]
        lines.append(line)
    head = ["point", "system", "seeds"]
    for metric in shown:
        head += [metric_title(metric), "difference"]
    caption = f"{rows[0].users:,} users, protocol {rows[0].protocol}"
    return table(caption, head, lines, text_columns=2)


def _whole_table(rows: Sequence[PointRow]) -> Html:
    cells = {(row.point, row.metric): row for row in rows}
    names = list(dict.fromkeys(row.metric for row in rows))
    lines = [
        [point, *(points.mean_cell(cells[point, name]) for name in names)]
        for point in dict.fromkeys(row.point for row in rows)
    ]
    head = ["point", *map(metric_title, names)]
    return table(f"Every metric, protocol {rows[0].protocol}", head, lines)


def _difference(row: PointRow) -> Content:
    if row.difference is None or row.difference_low is None or row.difference_high is None:
        return "–"
    return gap_cell(Difference(row.difference, row.difference_low, row.difference_high))


def _points(about: Mapping[str, Any]) -> Section:
    """What each point sets, and how it went."""
    lines: list[list[Content]] = []
    for point in about["points"]:
        sets = ", ".join(f"{field}={value}" for field, value in point["sets"].items())
        lines.append(
            [
                point["name"],
                element("code", clipped(sets, _LONGEST)) if sets else "–",
                clipped(point["problem"], _LONGEST) or "finished",
                clock(point["seconds"]) if point["seconds"] else "–",
            ]
        )
    shared = ", ".join(f"{field}={value}" for field, value in about["settings"].items())
    body = [
        note("Every point sets ", element("code", clipped(shared, _LONGEST)), ".")
        if shared
        else None,
        table(
            "A point is a folder of this name beside the page, with a report.html of its own",
            ["point", "sets", "state", "time"],
            lines,
            text_columns=3,
        ),
    ]
    return Section("points", "Points", joined(body))
