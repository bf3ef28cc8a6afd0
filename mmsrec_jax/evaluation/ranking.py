"""Ranks of targets, for anything that scores items from a history.

A system has `name` and `scores(histories int32[B, L], times float64[B, L]) -> float32[B, items]`,
histories padded with -1. Scores stay on the device; only ranks come back.
"""

from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmsrec_jax.errors import UserError
from mmsrec_jax.evaluation.metrics import Ranks
from mmsrec_jax.evaluation.protocols import Candidates, write_parquet
from mmsrec_jax.models.heads import sequences
from mmsrec_jax.progress import Progress


class System(Protocol):
    name: str

    def scores(self, histories: np.ndarray, times: np.ndarray | None = None) -> jax.Array: ...


def full(
    system: System, histories, rows: np.ndarray, *, chunk: int = 256, progress: bool = True
) -> Ranks:
    """Ranks each row's target in the whole catalogue; what the user had before does not compete.

    rows int32[R, 2] as in a Split. The target competes even when the user had it before. The
    largest arrays on the device are [chunk, items]. Raises UserError naming the system when a score
    is NaN.
    """
    rows = np.asarray(rows, np.int32)
    seen = int(rows[:, 1].max(initial=1))
    return _in_chunks(
        system, histories, rows, chunk,
        lambda scores, past, targets, _: _rank_full(scores, past, targets),
        width=seen, progress=progress,
    )  # fmt: skip


def sampled(system: System, histories, candidates: Candidates, *, chunk: int = 256) -> Ranks:
    """Ranks each row's target among its frozen candidates. Raises UserError when a score is NaN."""
    return _in_chunks(
        system, histories, candidates.rows, chunk,
        lambda scores, past, targets, at: _rank_gathered(
            scores, jnp.asarray(candidates.items[at]), targets
        ),
        width=int(candidates.rows[:, 1].max(initial=1)),
    )  # fmt: skip


def from_scores(name: str, scores: np.ndarray, candidates: Candidates) -> Ranks:
    """Ranks from ready scores of the candidates: float[R, 1 + n], aligned with `candidates.items`.

    Raises UserError naming the system when a score is NaN.
    """
    scores = np.asarray(scores)
    _no_nan(name, scores)
    own = scores[np.arange(len(scores)), candidates.positive][:, None]
    return Ranks(
        candidates.rows[:, 0],
        candidates.targets,
        (scores >= own).sum(1),
        np.full(len(scores), scores.shape[1]),
        (scores == own).sum(1) - 1,
    )


def full_from_scores(name: str, scores: np.ndarray, histories, rows: np.ndarray) -> Ranks:
    """`full` from ready scores of the whole catalogue: float[R, items], aligned with `rows`."""
    scores, rows = np.asarray(scores), np.asarray(rows, np.int32)
    _no_nan(name, scores)
    row, targets = np.arange(len(rows)), sequences.targets(histories, rows)
    past = sequences.before(histories, rows, max(int(rows[:, 1].max(initial=1)), 1))
    competes = np.ones(scores.shape, bool)
    known = past >= 0
    competes[np.broadcast_to(row[:, None], past.shape)[known], past[known]] = False
    competes[row, targets] = True
    own = scores[row, targets][:, None]
    return Ranks(
        rows[:, 0],
        targets,
        (competes & (scores >= own)).sum(1),
        competes.sum(1),
        (competes & (scores == own)).sum(1) - 1,
    )


def _in_chunks(system, histories, rows, chunk, rank, width, progress=True):
    chunk = min(chunk, max(len(rows), 1))
    targets = sequences.targets(histories, rows)
    lines = Progress(f"rank {system.name}", len(rows), unit="rows") if progress else None
    parts = []
    for start in range(0, len(rows), chunk):
        at = np.arange(start, start + chunk).clip(max=len(rows) - 1)  # the last row fills up
        past = sequences.before(histories, rows[at], max(width, 1))
        times = sequences.times_before(histories, rows[at], max(width, 1))
        scores = jnp.asarray(system.scores(past, times))
        counted, nan = rank(scores, jnp.asarray(past), jnp.asarray(targets[at]), at)
        if nan:
            _no_nan(system.name, np.nan)
        live = min(chunk, len(rows) - start)
        parts.append(np.asarray(counted)[:, :live])
        if lines is not None:
            lines.update(live)
    ranks, competing, ties = np.concatenate([*parts, np.zeros((3, 0), np.int32)], axis=1)
    return Ranks(rows[:, 0], targets, ranks, competing, ties)


@jax.jit
def _rank_full(scores, past, targets):
    row = jnp.arange(len(scores))
    past = jnp.where(past < 0, scores.shape[1], past)  # out of bounds: dropped
    competes = jnp.ones(scores.shape, bool).at[row[:, None], past].set(False, mode="drop")
    competes = competes.at[row, targets].set(True)
    own = scores[row, targets][:, None]
    counted = jnp.stack(
        [
            (competes & (scores >= own)).sum(1),
            competes.sum(1),
            (competes & (scores == own)).sum(1) - 1,
        ]
    )
    return counted, jnp.isnan(scores).any()


@jax.jit
def _rank_gathered(scores, candidates, targets):
    row = jnp.arange(len(scores))
    own = scores[row, targets][:, None]
    among = jnp.take_along_axis(scores, candidates, 1)
    counted = jnp.stack(
        [
            (among >= own).sum(1),
            jnp.full(len(scores), candidates.shape[1]),
            (among == own).sum(1) - 1,
        ]
    )
    return counted, jnp.isnan(among).any()


def _no_nan(name, scores):
    if np.isnan(scores).any():
        raise UserError(f"system {name}: a score is NaN; its weights or its input are broken")


def write_ranks(path: str | Path, ranks: Ranks, **metadata: str | int) -> None:
    """Writes parquet atomically: user, target, rank, candidates, n_ties (int32, indices not ids).

    metadata (system, protocol, seed, digest of the candidates) goes into the file's schema.
    """
    table = pa.table(
        {
            "user": ranks.users,
            "target": ranks.targets,
            "rank": ranks.ranks,
            "candidates": ranks.candidates,
            "n_ties": ranks.ties,
        }
    )
    stored = {key: str(value) for key, value in metadata.items()}
    write_parquet(Path(path), table.replace_schema_metadata(stored))


def read_ranks(path: str | Path) -> tuple[Ranks, dict[str, str]]:
    """Reads what `write_ranks` stored. Raises UserError when the file or a column is missing."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such ranks file; run the evaluation first")
    table = pq.read_table(path)
    names = ("user", "target", "rank", "candidates", "n_ties")
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise UserError(f"{path}: column {missing[0]} is missing; it is not a ranks file")
    metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    return Ranks(*(table[name].to_numpy() for name in names)), metadata
