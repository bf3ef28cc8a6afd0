"""Ranks of targets, for anything that scores items.

A system has `name` and `scores(histories int32[B, L], times float64[B, L]) -> float32[B, items]`,
histories padded with -1. One that knows more of its users than their histories has
`row_scores(at int[B]) -> float32[B, items]` instead: it was made for the rows that are ranked, and
is told their numbers. Scores stay on the device; only ranks come back.
"""

import functools
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mmsrec_jax.data import sequences
from mmsrec_jax.data.records import Histories
from mmsrec_jax.evaluation.metrics import Ranks
from mmsrec_jax.evaluation.protocols import Candidates
from mmsrec_jax.runtime import arrays, disk
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.files import write_parquet
from mmsrec_jax.runtime.progress import Progress

Array = jax.Array | np.ndarray
# (scores [B, items], what the user had before [B, L], targets [B], row numbers [B]) to (rank,
# candidates and ties [3, B], lists [B, top], whether a score is NaN)
_Rank = Callable[
    [jax.Array, np.ndarray, np.ndarray, np.ndarray], tuple[jax.Array, jax.Array, jax.Array]
]


class System(Protocol):
    """Anything that scores the catalog from histories."""

    @property
    def name(self) -> str: ...

    def scores(self, histories: np.ndarray, times: np.ndarray | None = None) -> Array: ...


@runtime_checkable
class RowSystem(Protocol):
    """Anything that scores the catalog for the rows that it was made for."""

    @property
    def name(self) -> str: ...

    def row_scores(self, at: np.ndarray) -> Array: ...


def full(
    system: System | RowSystem,
    histories: Histories,
    rows: np.ndarray,
    *,
    chunk: int = 0,
    progress: bool = True,
    top: int = 0,
) -> Ranks:
    """Ranks each row's target in the whole catalog; what the user had before does not compete.

    rows int32[R, 2] as in a Split. The target competes even when the user had it before. `top`: how
    many of the best items to keep of every row. The largest arrays on the device are [chunk,
    items]; a chunk of 0 is one that suits the device. Raises UserError naming the system when a
    score is NaN.
    """
    rows = np.asarray(rows, np.int32)
    return _in_chunks(
        system, histories, rows, chunk,
        lambda scores, past, targets, _: _rank_full(scores, past, targets, top),
        top=top, progress=progress,
    )  # fmt: skip


def full_and_sampled(
    system: System | RowSystem,
    histories: Histories,
    lists: Sequence[Candidates],
    *,
    chunk: int = 0,
    top: int = 0,
) -> list[Ranks]:
    """`full`, then the ranks among each of `lists`, all of the same rows, from one pass.

    Raises UserError naming the system when a score is NaN.
    """

    def among(frozen: Candidates) -> _Rank:
        return lambda scores, past, targets, at: _rank_gathered(scores, frozen.items[at], targets)

    def in_all(
        scores: jax.Array, past: np.ndarray, targets: np.ndarray, at: np.ndarray
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        return _rank_full(scores, past, targets, top)

    rankings = [in_all, *map(among, lists)]
    tops = [top] + [0] * len(lists)
    return _in_all(system, histories, lists[0].rows, chunk, rankings, tops=tops)


def from_scores(name: str, scores: np.ndarray, candidates: Candidates) -> Ranks:
    """Ranks from ready scores of the candidates: float[R, 1 + n], aligned with `candidates.items`.

    Raises UserError naming the system when a score is NaN.
    """
    scores = np.asarray(scores)
    check_scores(name, scores)
    own = scores[np.arange(len(scores)), candidates.positive][:, None]
    return Ranks(
        candidates.rows[:, 0],
        candidates.targets,
        (scores >= own).sum(1),
        np.full(len(scores), scores.shape[1]),
        (scores == own).sum(1) - 1,
    )


def full_from_scores(
    name: str, scores: np.ndarray, histories: Histories, rows: np.ndarray, *, top: int = 0
) -> Ranks:
    """`full` from ready scores of the whole catalog: float[R, items], aligned with `rows`.

    On the host, in the precision of `scores`.
    """
    scores, rows = np.asarray(scores), np.asarray(rows, np.int32)
    check_scores(name, scores)
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
        _best(np.where(competes, scores, -np.inf), top),
    )


def _in_chunks(
    system: System | RowSystem,
    histories: Histories,
    rows: np.ndarray,
    chunk: int,
    rank: _Rank,
    top: int = 0,
    progress: bool = True,
) -> Ranks:
    return _in_all(system, histories, rows, chunk, [rank], tops=[top], progress=progress)[0]


def _in_all(
    system: System | RowSystem,
    histories: Histories,
    rows: np.ndarray,
    chunk: int,
    rankings: Sequence[_Rank],
    *,
    tops: Sequence[int],
    progress: bool = True,
) -> list[Ranks]:
    """What each of `rankings` makes of the same scores; tops: how many items it keeps of a row."""
    longest = max(int(rows[:, 1].max(initial=1)), 1)
    chunk = min(chunk or _chunk(), max(len(rows), 1))
    targets = sequences.targets(histories, rows)
    lines = Progress(f"rank {system.name}", len(rows), unit="rows") if progress else None
    counts = [np.zeros((3, len(rows)), np.int32) for _ in rankings]
    lists = [np.zeros((len(rows), top), np.int32) for top in tops]
    waiting: deque[tuple[np.ndarray, list]] = deque()  # computed while the next chunk is prepared

    def collect() -> None:
        at, found = waiting.popleft()
        for number, (counted, best, nan) in enumerate(found):
            if arrays.fetch(nan):
                check_scores(system.name, np.nan)
            counts[number][:, at], lists[number][at] = arrays.fetch(counted), arrays.fetch(best)

    by_length = np.argsort(rows[:, 1], kind="stable")  # chunks of short histories are cheap
    for start in range(0, len(rows), chunk):
        at = by_length[np.arange(start, start + chunk).clip(max=len(rows) - 1)]  # the last fills up
        width = min(sequences.power_of_two(rows[at, 1].max()), longest)
        past = sequences.before(histories, rows[at], width)
        if isinstance(system, RowSystem):
            scores = jnp.asarray(system.row_scores(at))
        else:
            times = sequences.times_before(histories, rows[at], width)
            scores = jnp.asarray(system.scores(past, times))
        past = np.pad(past, ((0, 0), (0, longest - width)), constant_values=-1)  # compiled once
        waiting.append((at, [rank(scores, past, targets[at], at) for rank in rankings]))
        if len(waiting) > 1:
            collect()
        if lines is not None:
            lines.update(min(chunk, len(rows) - start))
    while waiting:
        collect()
    return [
        Ranks(rows[:, 0], targets, ranks, competing, ties, listed)
        for (ranks, competing, ties), listed in zip(counts, lists, strict=True)
    ]


def _chunk() -> int:
    """Rows at once. At 12,000 items a CPU maps fresh memory for each chunk of 256 rows, at half the
    speed; on other devices the host's work for a chunk is what takes time."""
    return 128 if jax.default_backend() == "cpu" else 1024


@functools.partial(jax.jit, static_argnames="top")
def _rank_full(
    scores: jax.Array, past: jax.Array, targets: jax.Array, top: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
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
    best, items = jax.lax.top_k(
        jnp.where(competes, scores, -jnp.inf), min(top, scores.shape[1])
    )  # of equal scores the lower index first
    items = jnp.where(best > -jnp.inf, items, -1)
    items = jnp.pad(items, ((0, 0), (0, top - items.shape[1])), constant_values=-1)
    return counted, items, jnp.isnan(scores).any()


@jax.jit
def _rank_gathered(
    scores: jax.Array, candidates: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
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
    return counted, jnp.zeros((len(scores), 0), jnp.int32), jnp.isnan(among).any()


def _best(scores: np.ndarray, top: int) -> np.ndarray:
    """The host's `top_k`: int32[R, top] in the same order, without sorting whole rows."""
    found = np.full((len(scores), top), -1, np.int32)
    width = min(top, scores.shape[1])
    if not width or not len(scores):
        return found
    least = np.partition(scores, -width, axis=1)[:, -width][:, None]
    above, level = scores > least, scores == least
    room = width - above.sum(1, keepdims=True)
    items = np.nonzero(above | (level & (np.cumsum(level, 1) <= room)))[1].reshape(-1, width)
    values = np.take_along_axis(scores, items, 1)
    order = np.argsort(-values, axis=1, kind="stable")
    items = np.where(values > -np.inf, items, -1)
    found[:, :width] = np.take_along_axis(items, order, 1)
    return found


def check_scores(name: str, scores: npt.ArrayLike) -> None:
    """Raises UserError naming the system when a score is NaN."""
    if np.isnan(scores).any():
        raise UserError(f"system {name}: a score is NaN; its weights or its input are broken")


def write_ranks(path: str | Path, ranks: Ranks, **metadata: str | int) -> None:
    """Writes parquet atomically: user, target, rank, candidates, n_ties and, if kept, lists `top`.

    All int32, indices and not ids. The metadata goes into the file's schema.
    """
    columns = {
        "user": pa.array(ranks.users),
        "target": pa.array(ranks.targets),
        "rank": pa.array(ranks.ranks),
        "candidates": pa.array(ranks.candidates),
        "n_ties": pa.array(ranks.ties),
    }
    if width := ranks.top.shape[1]:
        columns["top"] = pa.FixedSizeListArray.from_arrays(pa.array(ranks.top.ravel()), width)
    stored = {key: str(value) for key, value in metadata.items()}
    write_parquet(path, pa.table(columns).replace_schema_metadata(stored))


def read_ranks(path: str | Path) -> tuple[Ranks, dict[str, str]]:
    """Reads what `write_ranks` stored. Raises UserError when the file or a column is missing."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such ranks file; run the evaluation first")
    names = ("user", "target", "rank", "candidates", "n_ties")
    remedy = f"if it is a ranks file, delete {path.parent} and run launch/train.py again"
    table = disk.read_parquet(path, names, remedy)
    with disk.readable(path, remedy):
        columns = [table[name].to_numpy() for name in names]
        for name, column in zip(names, columns, strict=True):
            if column.dtype.kind not in "iu":
                raise ValueError(f"column {name} has other than whole numbers")
        top = np.zeros((len(table), 0), np.int32)
        if "top" in table.column_names:
            width = table.schema.field("top").type.list_size
            top = table["top"].combine_chunks().flatten().to_numpy().reshape(len(table), width)
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    users, targets, ranks, candidates, ties = columns
    return Ranks(users, targets, ranks, candidates, ties, top), metadata
