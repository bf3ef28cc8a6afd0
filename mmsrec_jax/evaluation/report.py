"""The table of a run: one row per system, protocol and seed, on the screen and in table.json."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmsrec_jax.evaluation.metrics import CUTOFFS, Ranks, summary
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.files import write_text

HEAD = ("system", "protocol", "seed", "users")


def row(
    system: str, protocol: str, seed: int, ranks: Ranks, cutoffs: Sequence[int] = CUTOFFS
) -> dict:
    """One table row: `HEAD` and every metric of `metrics.names`.

    Raises:
      UserError: nothing to average, or a cut-off beyond what competes.
    """
    try:
        measured = summary(ranks, cutoffs)
    except UserError as error:
        raise UserError(f"system {system}, {protocol}: {error}") from error
    head = {"system": system, "protocol": protocol, "seed": int(seed), "users": len(ranks)}
    return head | measured


def rows_from_ranks(
    found: Iterable[tuple[str, str, int, Ranks]], cutoffs: Sequence[int] = CUTOFFS
) -> list[dict]:
    """Rows of (system, protocol, seed, ranks), in the order given."""
    return [row(*entry, cutoffs) for entry in found]


def screen_table(rows: Sequence[dict]) -> str:
    """The rows as aligned text, four decimals; no column that repeats another by definition."""
    names = [name for name in rows[0] if is_shown(name)] if rows else list(HEAD)
    return aligned([names, *([_cell(entry[name]) for name in names] for entry in rows)], left=2)


def aligned(lines: Sequence[Sequence[str]], *, left: int) -> str:
    """Text columns under a header line, the first `left` of them flush left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


def write_table(path: str | Path, rows: Sequence[dict]) -> None:
    """Writes the rows as a JSON list, one row a line, atomically."""
    lines = ",\n".join(json.dumps(entry) for entry in rows)
    write_text(path, f"[\n{lines}\n]\n" if rows else "[]\n")


def is_shown(name: str) -> bool:
    """HR@k is Recall@k, and at k = 1 NDCG and MRR too."""
    return not name.startswith("recall@") and name not in ("ndcg@1", "mrr@1")


def _cell(value: str | float) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
