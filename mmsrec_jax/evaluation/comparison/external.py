"""Another library's scores, (user, item, score) by raw ids, ranked as our own systems are.

What the file does not score is scored -inf: a list of the best N of every user is enough for
metrics at k <= N, while AUC and larger cut-offs then count what is missing against it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from mmsrec_jax.data.records import Histories
from mmsrec_jax.evaluation import ranking
from mmsrec_jax.evaluation.metrics import Ranks
from mmsrec_jax.evaluation.protocols import Candidates
from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError, first_line

COLUMNS = ("user", "item", "score")
_CHUNK = 256  # rows of dense scores in memory at once


@dataclass(frozen=True)
class Scores:
    """Scored pairs: keys int64[N], ascending and unique, user * items + item; scores float64[N]."""

    keys: np.ndarray
    scores: np.ndarray
    num_items: int

    def of(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Scores of pairs of indices, -inf where the file has none; shapes broadcast."""
        wanted = np.asarray(users, np.int64) * self.num_items + items
        at = np.searchsorted(self.keys, wanted)
        found = np.take(self.keys, at, mode="clip") == wanted
        return np.where(found, np.take(self.scores, at, mode="clip"), -np.inf)


def read(path: Path, users: np.ndarray, items: np.ndarray) -> Scores:
    """Reads a parquet or CSV file with the columns user, item and score, in any order.

    users str[U], items str[I]: the raw ids of the data set, by index. Other columns are ignored;
    ids may be numbers or text. Rows are counted from 1, a CSV's header not included.

    Raises:
      UserError: no such file or of another kind, a missing column, an unknown id, a score that is
        no number or NaN, a pair scored twice.
    """
    table = _read_columns(path)
    if not len(table):
        raise UserError(f"{path}: has no rows; write one row for every scored (user, item)")
    user = _indices(path, table["user"], users, "user")
    item = _indices(path, table["item"], items, "item")
    scores = _numbers(path, table["score"])
    if np.isnan(scores).any():
        row = int(np.argmax(np.isnan(scores)))
        raise UserError(
            f"{path}, row {row + 1}: the score is NaN or missing; leave the row out to have the "
            "item rank last"
        )
    keys = user * len(items) + item
    order = np.argsort(keys, kind="stable")
    again = np.flatnonzero(np.diff(keys[order]) == 0)
    if len(again):
        row = int(order[again + 1].min())
        raise UserError(
            f"{path}, row {row + 1}: user {users[user[row]]} and item {items[item[row]]} have a "
            "score already; keep one row for every pair"
        )
    return Scores(keys[order], scores[order], len(items))


def full(name: str, scores: Scores, histories: Histories, rows: np.ndarray, *, top: int) -> Ranks:
    """Ranks as `ranking.full` does, a chunk of dense scores at a time."""
    items = np.arange(scores.num_items)
    parts = []
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        dense = scores.of(part[:, :1], items)
        parts.append(ranking.full_from_scores(name, dense, histories, part, top=top))
    fields = ("users", "targets", "ranks", "candidates", "ties", "top")
    return Ranks(*(np.concatenate([getattr(part, field) for part in parts]) for field in fields))


def sampled(name: str, scores: Scores, frozen: Candidates) -> Ranks:
    """Ranks among the frozen candidates."""
    return ranking.from_scores(name, scores.of(frozen.rows[:, :1], frozen.items), frozen)


def missing(scores: Scores, ranks: Ranks) -> int:
    """How many targets the file does not score."""
    return int(np.isneginf(scores.of(ranks.users, ranks.targets)).sum())


def _read_columns(path: Path) -> pa.Table:
    if not path.exists():
        raise UserError(f"{path}: no such file; --external=NAME=FILE takes a parquet or CSV file")
    reading.check_regular(path)
    if path.suffix not in (".parquet", ".csv"):
        raise UserError(f"{path}: is called neither *.parquet nor *.csv; convert or rename it")
    table = reading.read_parquet(path, COLUMNS) if path.suffix == ".parquet" else _read_csv(path)
    for name in COLUMNS:
        if name not in table.column_names:
            there = ", ".join(table.column_names[:20])
            raise UserError(
                f"{path}: column {name!r} is missing (there are: {there}); "
                f"name the columns {', '.join(COLUMNS)}"
            )
        if table.column_names.count(name) > 1:
            raise UserError(f"{path}: column {name!r} is there twice; keep one")
    return table.select(COLUMNS).combine_chunks()


def _read_csv(path: Path) -> pa.Table:
    as_text = pa_csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string()))
    by_line = pa_csv.ReadOptions(block_size=reading.LONGEST_LINE)
    try:
        with pa.OSFile(str(path)) as file:  # a name that ends with .gz.csv is no archive
            table = pa_csv.read_csv(file, read_options=by_line, convert_options=as_text)
        return table.rename_columns(table.column_names)  # names that are no UTF-8 raise here
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); write it again") from error


def _indices(path: Path, column: pa.Array, known: np.ndarray, what: str) -> np.ndarray:
    """int64[N]: where the ids of a column are in `known`."""
    try:
        ids = pc.cast(column, pa.string())
    except pa.ArrowException as error:
        raise UserError(f"{path}: column {what!r} holds no ids but {column.type}") from error
    found = pc.index_in(ids, value_set=pa.array(known.tolist(), pa.string()))
    unknown = pc.is_null(found).to_numpy()
    if unknown.any():
        row = int(np.argmax(unknown))
        id = reading.shown(ids[row].as_py())
        raise UserError(
            f"{path}, row {row + 1}: {what} {id} is not in the run's data "
            f"({int(unknown.sum())} such rows); score the {what}s that are left after the run's "
            "filters, by their raw ids"
        )
    return found.to_numpy().astype(np.int64)


def _numbers(path: Path, column: pa.Array) -> np.ndarray:
    """float64[N], NaN for null."""
    try:
        return reading.to_floats(column, finite=False)
    except reading.NotANumber as error:
        score = reading.shown(column[error.row].as_py())
        raise UserError(
            f"{path}, row {error.row + 1}: the score {score} is no number; write one"
        ) from None
