"""The table of a run: one row per system, protocol and seed, on the screen and in table.json."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmsrec_jax.errors import UserError
from mmsrec_jax.evaluation.metrics import Ranks, summary

METRICS = ("hr@5", "ndcg@5", "mrr@5", "auc", "recall@10", "ndcg@10")
COLUMNS = ("system", "protocol", "seed", "users", *METRICS)


def row(system: str, protocol: str, seed: int, ranks: Ranks) -> dict:
    """One table row. Raises UserError when there is nothing to average."""
    if not len(ranks):
        raise UserError(f"system {system}: no user to evaluate; the split left no test rows")
    head = {"system": system, "protocol": protocol, "seed": int(seed), "users": len(ranks)}
    return head | summary(ranks)


def rows_from_ranks(found: Iterable[tuple[str, str, int, Ranks]]) -> list[dict]:
    """Rows of (system, protocol, seed, ranks), in the order given."""
    return [row(*entry) for entry in found]


def screen_table(rows: Sequence[dict]) -> str:
    """The rows as aligned text, four decimals."""
    cells = [list(COLUMNS)]
    cells += [[_cell(entry[name]) for name in COLUMNS] for entry in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def write_table(path: str | Path, rows: Sequence[dict]) -> None:
    """Writes the rows as a JSON list, one row a line, atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps({name: entry[name] for name in COLUMNS}) for entry in rows)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(f"[\n{lines}\n]\n" if rows else "[]\n")
    os.replace(partial, path)


def _cell(value) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
