"""Draws the figures of README.md: docs/figures/pipeline.svg and docs/figures/quickstart.svg.

    python docs/figures/make_figures.py
    python docs/figures/make_figures.py --table=runs/quickstart/table.json   # after `make run`

The bars are docs/figures/quickstart.csv. --table first replaces its values by those of a run.
Colors are legible on white and on dark pages.
"""

import csv
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from absl import app, flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

_HERE = Path(__file__).resolve().parent
_TABLE = flags.DEFINE_string("table", None, "table.json of a run of configs/quickstart.py.")
_OUT = flags.DEFINE_string("out", str(_HERE), "Folder of the figures.")
_PROTOCOL, _METRIC = "sampled@20", "hr@5"

GRAY = "#78808a"  # readable on white and on GitHub's dark background
INK = "#10202c"  # on the filled boxes
ITEMS, USERS, MODEL, RESULT = "#f4b860", "#7cc4b5", "#8fb3e8", "#c9a7e0"
OURS, OTHERS, BOUND = "#e8833a", "#7f9cc0", "#9aa3ab"


def pipeline() -> Figure:
    """The steps of MMSRARec, from files to ranks."""
    figure, axes = plt.subplots(figsize=(11, 3.6))
    axes.set(xlim=(0, 110), ylim=(0, 36))
    axes.axis("off")
    _box(axes, 0, 22, 17, 11, "items", "image + text", ITEMS)
    _box(axes, 24, 22, 23, 11, "keywords", "written by the MLLM,\ntuned by GRPO", MODEL)
    _box(axes, 0, 4, 17, 11, "histories", "user, item, time", USERS)
    _box(axes, 24, 4, 23, 11, "similar users", "nearest by SASRec,\nand their next items", USERS)
    _box(axes, 54, 13, 23, 11, "prompt", "keywords of both, and a\ncandidate's image + text", ITEMS)
    _box(axes, 84, 13, 26, 11, "MLLM", "fine-tuned on 4 tasks:\np(yes) ranks the catalog", RESULT)
    for start, end in (
        ((17, 27.5), (24, 27.5)),
        ((17, 9.5), (24, 9.5)),
        ((47, 27.5), (54, 21)),
        ((47, 9.5), (54, 16)),
        ((77, 18.5), (84, 18.5)),
    ):
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": GRAY, "lw": 2})
    for x, y, text in (
        (35.5, 34.2, "stage 1"),
        (35.5, 1.4, "stage 2"),
        (97, 25.4, "stage 3"),
    ):
        axes.text(x, y, text, color=GRAY, ha="center", va="center", fontsize=11)
    figure.subplots_adjust(0, 0, 1, 1)
    return figure


def _box(
    axes: Axes, x: float, y: float, width: float, height: float, name: str, text: str, color: str
) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x + 0.6, y + 0.6),
            width - 1.2,
            height - 1.2,
            boxstyle="round,pad=0.4,rounding_size=1.4",
            facecolor=color,
            edgecolor="none",
        )  # fmt: skip
    )
    center = x + width / 2
    axes.text(
        center, y + height - 2.6, name, ha="center", va="center", fontsize=13, weight="bold",
        color=INK,
    )  # fmt: skip
    axes.text(center, y + height / 2 - 1.9, text, ha="center", va="center", fontsize=10, color=INK)


def quickstart(rows: list[dict[str, str]]) -> Figure:
    """HR@5 of every system, the best at the top."""
    rows = sorted(rows, key=lambda row: float(row[_METRIC]))
    figure, axes = plt.subplots(figsize=(8.4, 3.9))
    for y, row in enumerate(rows):
        value = float(row[_METRIC])
        bounds = ("bayes_learned_groups", "bayes_optimal", "oracle")
        color = OURS if row["system"] == "mmsrarec" else OTHERS
        color = BOUND if row["system"] in bounds else color
        axes.barh(y, value, height=0.68, linewidth=1.6, edgecolor=color, facecolor=color)
        weight = "bold" if row["system"] == "mmsrarec" else "normal"
        text = f"{value:.3f}".removeprefix("0")
        axes.text(value + 0.012, y, text, va="center", color=GRAY, fontsize=10.5, weight=weight)
        axes.text(-0.012, y, row["label"], va="center", ha="right", color=GRAY, fontsize=10.5,
                  weight=weight)  # fmt: skip
    axes.set(xlim=(0, 1.06), ylim=(-0.6, len(rows) - 0.4), yticks=[])
    axes.set_xlabel("HR@5, 1 true + 20 sampled items", color=GRAY)
    axes.tick_params(axis="x", colors=GRAY)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRAY)
    figure.subplots_adjust(left=0.17, right=0.99, top=0.99, bottom=0.14)
    return figure


def updated(rows: list[dict[str, str]], table: Path) -> list[dict[str, str]]:
    """`rows` with the values of the systems that table.json has."""
    found = {
        entry["system"]: f"{entry[_METRIC]:.3f}".removeprefix("0")
        for entry in json.loads(table.read_text())
        if entry["protocol"] == _PROTOCOL
    }
    return [row | {_METRIC: found.get(row["system"], row[_METRIC])} for row in rows]


def main(argv: list[str]) -> None:
    del argv
    source, out = _HERE / "quickstart.csv", Path(_OUT.value)
    with source.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if _TABLE.value:
        rows = updated(rows, Path(_TABLE.value))
        with source.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    plt.rcParams["svg.hashsalt"] = "mmsrec_jax"  # the same input gives the same file
    for name, figure in (("pipeline", pipeline()), ("quickstart", quickstart(rows))):
        figure.savefig(out / f"{name}.svg", transparent=True, metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    app.run(main)
