"""Neighbors on disk: one row per query in parquet."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from mmsrec_jax.retrieval.similar import Neighbors
from mmsrec_jax.runtime.disk import read_parquet, readable
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.files import write_parquet


def write(path: Path, rows: np.ndarray, found: Neighbors) -> None:
    """Columns user, position (of the query) and lists items, users, similarity; atomic."""

    def lists(values: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])

    columns = {
        "user": pa.array(rows[:, 0]),
        "position": pa.array(rows[:, 1]),
        "items": lists(found.items),
        "users": lists(found.users),
        "similarity": lists(found.similarity),
    }
    write_parquet(path, pa.table(columns))


def read_items(path: Path, rows: np.ndarray) -> np.ndarray:
    """int32[n, k]: the neighbors' next items for the queries `rows` int32[n, 2].

    Raises:
      UserError: the file is missing or does not hold a query.
    """
    remedy = f"delete {path.parent} and run launch/train.py, which makes it"
    table = read_parquet(path, ("user", "position", "items"), remedy)
    with readable(path, remedy):
        stored = _keys(np.stack([table["user"].to_numpy(), table["position"].to_numpy()], 1))
        items = table["items"].combine_chunks()
        items = items.flatten().to_numpy().reshape(len(items), -1)
    order = np.argsort(stored, kind="stable")
    wanted = _keys(rows)
    at = np.searchsorted(stored[order], wanted).clip(max=max(len(stored) - 1, 0))
    if len(wanted) and (not len(stored) or (stored[order][at] != wanted).any()):
        raise UserError(f"{path}: not of these targets; {remedy}")
    return items[order[at]].astype(np.int32)


def _keys(rows: np.ndarray) -> np.ndarray:
    return rows[:, 0].astype(np.int64) << 32 | rows[:, 1].astype(np.int64)
