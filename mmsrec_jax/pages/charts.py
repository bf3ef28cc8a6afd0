"""Charts as SVG within a page: lines of a few hundred points, values with intervals; colors by the
page's style."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmsrec_jax.pages.markup import Html, clipped, element

MOST_POINTS = 240
COLORS = 8  # of lines, see style.css
_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 30
_NAMES, _ROW, _LONGEST_NAME = 112, 22, 18  # of a chart of intervals


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    x, y: float64[n], x ascending; points that are not finite are not drawn. marked: as points with
    a thin line between them, for values measured now and then, such as those of validation. color:
    0 to `COLORS` - 1.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    marked: bool = False
    color: int = 0


@dataclass(frozen=True)
class Interval:
    """A named value with its bounds."""

    name: str
    value: float
    low: float
    high: float


def interval_chart(title: str, intervals: Sequence[Interval]) -> Html:
    """A figure with a row for each: a dot at the value, a line from low to high. A dashed line goes
    through the first value, so that the others are seen beside it."""
    height = _TOP + _ROW * len(intervals) + _BOTTOM
    bottom, right = height - _BOTTOM, _WIDTH - _RIGHT
    x_range = _range(np.array([[one.low, one.high, one.value] for one in intervals]))

    def at(value: float) -> float:
        return round(float(_place(np.array(value), x_range, _NAMES, right)), 1)

    drawn: list[Html] = []
    for tick in ticks(*x_range, count=4):
        drawn += [
            element("line", x1=at(tick), x2=at(tick), y1=_TOP, y2=bottom, class_="grid"),
            element("text", short(tick), x=at(tick), y=bottom + 14, class_="middle"),
        ]
    first = at(intervals[0].value)
    drawn.append(element("path", d=f"M{first} {_TOP}V{bottom}", class_="line thin c6"))
    for number, one in enumerate(intervals):
        y = _TOP + _ROW * number + _ROW // 2
        drawn += [
            element("text", clipped(one.name, _LONGEST_NAME), x=_NAMES - 8, y=y + 4, class_="end"),
            element("path", d=f"M{at(one.low)} {y}H{at(one.high)}", class_="line c0"),
            element("circle", cx=at(one.value), cy=y, r="3.2", class_="dot c0"),
        ]
    told = "; ".join(
        f"{one.name}: {short(one.value)}, {short(one.low)} to {short(one.high)}"
        for one in intervals
    )
    picture = element(
        "svg", drawn, viewBox=f"0 0 {_WIDTH} {height}", role="img", aria_label=f"{title}. {told}"
    )
    return element("figure", element("figcaption", title), picture, class_="chart")


def line_chart(title: str, lines: Sequence[Line]) -> Html:
    """A figure with a legend. Its text for screen readers says where each line begins and ends."""
    drawn = [_finite(line) for line in lines]
    drawn = [line for line in drawn if len(line.x)]
    if not drawn:
        return element(
            "figure",
            element("figcaption", title),
            element("p", "no finite value", class_="note"),
            class_="chart",
        )
    x_range = _range(np.concatenate([line.x for line in drawn]), is_x=True)
    y_range = _range(np.concatenate([line.y for line in drawn]))
    picture = element(
        "svg",
        _axes(x_range, y_range),
        [_path(line, x_range, y_range) for line in drawn],
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=f"{title}. " + "; ".join(map(_told, drawn)),
    )
    legend = [
        element(
            "li",
            element("span", class_=f"key c{line.color}" + (" dots" if line.marked else "")),
            line.name,
            " ",
            element("b", short(float(line.y[-1]))),
        )
        for line in drawn
    ]
    return element(
        "figure",
        element("figcaption", title),
        picture,
        element("ul", legend, class_="legend"),
        class_="chart",
    )


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MOST_POINTS` points of float[n] each, which keep the first, the last and every
    extreme that a screen could show: the lowest and the highest of each of `MOST_POINTS` / 2 - 1
    equal parts."""
    if len(x) <= MOST_POINTS:
        return x, y
    parts = np.array_split(np.arange(1, len(x) - 1), max(MOST_POINTS // 2 - 1, 1))
    extremes = [part[[y[part].argmin(), y[part].argmax()]] for part in parts]
    kept = np.unique(np.concatenate([[0], *extremes, [len(x) - 1]]))
    return x[kept], y[kept]


def short(value: float) -> str:
    """Three significant digits, without zeros that say nothing."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if 1e4 <= abs(value) < 1e15:
        power = min(int(math.log10(abs(value)) // 3), 4)
        return f"{value / 10 ** (3 * power):.3g}{' kMGT'[power]}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers within [low, high]."""
    step = (high - low) / count
    size = 10.0 ** math.floor(math.log10(step))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= step * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _finite(line: Line) -> Line:
    kept = np.isfinite(line.x) & np.isfinite(line.y)
    x, y = thinned(line.x[kept], line.y[kept])
    return Line(line.name, x, y, line.marked, line.color % COLORS)


def _range(values: np.ndarray, *, is_x: bool = False) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if low == high:
        margin = abs(low) * 0.05 or 1.0
        return low - margin, high + margin
    margin = 0.0 if is_x else (high - low) * 0.06
    return low - margin, high + margin


def _place(values: np.ndarray, bounds: tuple[float, float], start: int, end: int) -> np.ndarray:
    low, high = bounds
    return start + (values - low) / (high - low) * (end - start)


def _axes(x_range: tuple[float, float], y_range: tuple[float, float]) -> list[Html]:
    found = []
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for value in ticks(*y_range):
        at = round(float(_place(np.array(value), y_range, bottom, _TOP)), 1)
        found += [
            element("line", x1=_LEFT, x2=right, y1=at, y2=at, class_="grid"),
            element("text", short(value), x=_LEFT - 6, y=at + 4, class_="end"),
        ]
    for value in ticks(*x_range):
        at = round(float(_place(np.array(value), x_range, _LEFT, right)), 1)
        found.append(element("text", short(value), x=at, y=bottom + 14, class_="middle"))
    found.append(element("line", x1=_LEFT, x2=right, y1=bottom, y2=bottom, class_="axis"))
    found.append(element("text", "step", x=right, y=_HEIGHT - 3, class_="end"))
    return found


def _path(line: Line, x_range: tuple[float, float], y_range: tuple[float, float]) -> list[Html]:
    x = _place(line.x, x_range, _LEFT, _WIDTH - _RIGHT)
    y = _place(line.y, y_range, _HEIGHT - _BOTTOM, _TOP)
    points = [f"{a:.1f} {b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    color = f"c{line.color}"
    if len(points) == 1:
        return [_dot(points[0], color)]
    kind = f"line {color}" + (" thin" if line.marked else "")
    found = [element("path", d="M" + "L".join(points), class_=kind)]
    return found + ([_dot(point, color) for point in points] if line.marked else [])


def _dot(point: str, color: str) -> Html:
    x, y = point.split()
    return element("circle", cx=x, cy=y, r="2.6", class_=f"dot {color}")


def _told(line: Line) -> str:
    first, last = line.y[0], line.y[-1]
    return f"{line.name}: {short(float(first))} to {short(float(last))}"
