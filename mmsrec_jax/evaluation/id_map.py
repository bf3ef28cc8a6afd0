"""Raw ids beside arrays and ranks, which count users and items: row i of a file is number i."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from mmsrec_jax.runtime.files import write_parquet

ITEMS, USERS = "item_ids.parquet", "user_ids.parquet"


def write_items(directory: Path, ids: np.ndarray) -> None:
    """`item_ids.parquet`, columns item int32 and id: str[items], the catalog's ids in its order."""
    _write(directory / ITEMS, "item", ids)


def write_users(directory: Path, ids: np.ndarray) -> None:
    """`user_ids.parquet`, columns user int32 and id: str[users], those of the histories."""
    _write(directory / USERS, "user", ids)


def _write(path: Path, name: str, ids: np.ndarray) -> None:
    numbers = pa.array(np.arange(len(ids), dtype=np.int32))
    write_parquet(path, pa.table({name: numbers, "id": pa.array(ids.tolist(), pa.string())}))
