"""The table of an experiment with several runs: means, and differences to one row."""

import json
from collections.abc import Sequence
from typing import Any

from mmsrec_jax.evaluation.comparison.presentation import (
    Row,
    difference_cell,
    headline,
    mean_cell,
)
from mmsrec_jax.evaluation.report import aligned, is_shown
from mmsrec_jax.evaluation.slices import WHOLE

_SHOWN = ("hr@5", "ndcg@10")  # on the screen, where they were measured


def as_json(rows: Sequence[Row]) -> str:
    """A list of table rows, one a line: system, protocol, seeds (how many), users, and for every
    metric its mean over users and seeds and its sd between seeds; with `baseline`, the row that it
    is compared with, also difference, low and high, the paired 95% interval."""
    table: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if row.slice != WHOLE:
            continue
        head = {"system": row.system, "protocol": row.protocol, "seeds": row.seeds}
        head |= {"users": row.users, "baseline": row.baseline}
        entry = table.setdefault((row.protocol, row.system), head)
        entry[row.metric] = {
            "mean": row.value, "sd": row.sd, "difference": row.difference,
            "low": row.low, "high": row.high,
        }  # fmt: skip
    return "[\n" + ",\n".join(map(json.dumps, table.values())) + "\n]\n"


def screen(rows: Sequence[Row]) -> str:
    """For every protocol a line a system: means with their sd between seeds, and differences to the
    baseline with paired 95% intervals over users and seeds."""
    parts = []
    for protocol in dict.fromkeys(row.protocol for row in rows):
        own = [r for r in rows if r.protocol == protocol and r.slice == WHOLE]
        cells = {(row.system, row.metric): row for row in own if is_shown(row.metric)}
        shown = [name for name in _SHOWN if any(name == metric for _, metric in cells)]
        shown = shown or headline(own)
        baseline = next((row.baseline for row in own if row.baseline), "")
        head = ["system", "seeds"]
        for metric in shown:
            head += [metric, f"- {baseline}"]
        lines = [head]
        for system in dict.fromkeys(row.system for row in own):
            line = [system, str(cells[system, shown[0]].seeds)]
            for metric in shown:
                line += [mean_cell(cells[system, metric]), difference_cell(cells[system, metric])]
            lines.append(line)
        parts.append(f"{protocol}, {own[0].users:,} users\n" + aligned(lines, left=1))
    return "\n\n".join(parts)
