"""The curves of the steps that train: `metrics.jsonl` of one run or of several as charts."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mmsrec_jax.pages.charts import COLORS, Line, line_chart
from mmsrec_jax.pages.document import folded, note
from mmsrec_jax.pages.markup import Html, clipped, element, joined

_MOST_LINES = 2_000  # of a file that are parsed; validation lines are parsed in any case
_MOST_METRICS = 60  # of a step
_LONGEST_NAME = 60
_SAME_SCALE = 8.0
_FIRST = ("Loss", "Validation", "Rewards", "Yes and no")  # the others are folded

Series = dict[str, tuple[np.ndarray, np.ndarray]]  # metric -> steps, values; float64[n] each


def read(path: Path) -> Series:
    """The metrics in a `metrics.jsonl`, without `time/compilations`; of a long file every n-th
    line. Empty where there is none; a damaged line is passed over."""
    values: dict[str, list[tuple[float, float]]] = {}
    for line in _sampled(path):
        try:
            row = json.loads(line)
            step = float(row.pop("step"))
            pairs = [(name, (step, float(value))) for name, value in row.items()]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        for name, pair in pairs:
            values.setdefault(name, []).append(pair)
    values.pop("time/compilations", None)
    return {name: (np.array(pairs)[:, 0], np.array(pairs)[:, 1]) for name, pairs in values.items()}


def charts_of_step(series: Series) -> Html:
    """Charts of the metrics of one step: loss, validation and rewards, the others folded. Those
    beyond `_MOST_METRICS` are named and not drawn, and these are never of the first."""
    groups: dict[str, list[Line]] = {}
    moving = [name for name, (_, y) in series.items() if y.any()]
    zero = [name for name, (_, y) in series.items() if not y.any()]
    moving.sort(key=lambda name: _order(_place(name)[0]) == len(_FIRST))
    for name in moving[:_MOST_METRICS]:
        x, y = series[name]
        group, own = _place(name)
        groups.setdefault(group, []).append(Line(own, x, y, marked=group == "Validation"))
    shown: list[Html] = []
    hidden: list[Html] = []
    for group in sorted(groups, key=lambda name: (_order(name), name)):
        parts = by_scale(groups[group])
        for part in parts:
            names = ", ".join(line.name for line in part)
            title = f"{group}: {names}" if len(parts) > 1 and len(part) < 3 else group
            chart = line_chart(title, _colored(part))
            (shown if group in _FIRST else hidden).append(chart)
    more = None
    if hidden:
        more = folded(
            f"{len(hidden)} more: gradients, speed and others",
            element("div", hidden, class_="charts"),
        )
    return joined(
        element("div", shown, class_="charts") if shown else note("No loss is logged."),
        _listed("0 throughout", zero),
        element("div", more, class_="more") if more else None,
        _listed("in metrics.jsonl and not drawn", moving[_MOST_METRICS:]),
    )


def _listed(what: str, names: Sequence[str]) -> Html | None:
    if not names:
        return None
    told = ", ".join(clipped(name, _LONGEST_NAME) for name in names[:_MOST_METRICS])
    more = f" and {len(names) - _MOST_METRICS:,} more" if len(names) > _MOST_METRICS else ""
    return note(f"{what}: {told}{more}.")


def overlaid(runs: Mapping[str, Series]) -> Html:
    """Charts of the same step of several runs: loss, validation and total reward, a line a run."""
    charts = []
    for metric in ("loss", "validation/ndcg@10", "validation/recall@10", "reward/total"):
        lines = [
            Line(run, *series[metric], metric.startswith("validation/"), number)
            for number, (run, series) in enumerate(runs.items())
            if metric in series
        ]
        if lines:
            charts.append(line_chart(metric, lines))
    return element("div", charts, class_="charts")


def by_scale(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines in groups whose largest values are alike, so that none is drawn flat beside another;
    at most `COLORS` each. Lines below 0 are apart."""
    groups: list[list[Line]] = []
    for below in (False, True):
        highest = math.inf
        for line in sorted(lines, key=_size, reverse=True):
            size = _size(line)
            if _is_below(line) is not below:
                continue
            if highest == math.inf or size * _SAME_SCALE < highest or len(groups[-1]) == COLORS:
                groups.append([])
                highest = size
            groups[-1].append(line)
    first = {line.name: place for place, line in enumerate(lines)}
    ordered = [sorted(group, key=lambda line: first[line.name]) for group in groups]
    return sorted(ordered, key=lambda group: first[group[0].name])


def _is_below(line: Line) -> bool:
    return bool(np.nanmax(line.y, initial=-np.inf) < 0)


def _size(line: Line) -> float:
    finite = np.abs(line.y[np.isfinite(line.y)])
    return float(finite.max()) if len(finite) else 0.0


def _colored(lines: Sequence[Line]) -> list[Line]:
    return [Line(one.name, one.x, one.y, one.marked, color) for color, one in enumerate(lines)]


def _place(name: str) -> tuple[str, str]:
    """The chart of a metric, and what it is called there."""
    prefix, _, rest = name.partition("/")
    if prefix == "loss":
        return "Loss", rest or "loss"
    titles = {
        "validation": "Validation",
        "reward": "Rewards",
        "yes_no": "Yes and no",
        "reward_std": "Spread of rewards within a group",
        "rollout": "Rollouts",
        "time": "Speed",
    }
    if rest:
        return titles.get(prefix, prefix), rest
    return name, name


def _order(group: str) -> int:
    return _FIRST.index(group) if group in _FIRST else len(_FIRST)


def _sampled(path: Path) -> Iterator[bytes]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        total = sum(1 for _ in file)
        every = -(-total // _MOST_LINES) or 1
        file.seek(0)
        for number, line in enumerate(file, 1):
            if number % every == 0 or number == total or b'"validation/' in line:
                yield line
