"""The items of all partitions, numbered in the order in which the files name them first."""

import pyarrow as pa
import pyarrow.compute as pc

from mmsrec_jax.data.partitioned.plan import Plan

FILE = "items"
"""item, left: all items in order, and after how many filters of `users` they are still there."""
_WAITING = 2_000_000  # rows that are merged at once, at least


def index(plan: Plan, parts: list[int]) -> str:
    """Writes `FILE`, and returns its name. parts: all of them. Memory is in proportion to the
    number of items."""
    merged: pa.Table | None = None
    waiting: list[pa.Table] = []
    for part in sorted(parts):
        waiting.append(pa.Table.from_batches([plan.table(f"items-{part}")]))
        if sum(map(len, waiting)) > max(_WAITING, 0 if merged is None else len(merged)):
            merged, waiting = _merged(merged, waiting), []
    merged = _merged(merged, waiting)
    ordered = merged.sort_by("row").select(["item", "left"]).combine_chunks()
    batches = ordered.to_batches() or [pa.RecordBatch.from_pylist([], ordered.schema)]
    plan.put_tables(FILE, batches)
    return FILE


def number(plan: Plan, name: str, part: int) -> int:
    """Writes the items of a partition's rows by their numbers: codes-PART. name: `FILE`."""
    own = plan.table(f"items-{part}")["item"]
    codes = pc.index_in(own, value_set=plan.table(name)["item"]).to_numpy()
    plan.put_arrays(f"codes-{part}", items=codes[plan.arrays(f"rows-{part}")["items"]])
    return part


def _merged(merged: pa.Table | None, waiting: list[pa.Table]) -> pa.Table:
    tables = waiting if merged is None else [merged, *waiting]
    found = pa.concat_tables(tables).group_by("item").aggregate([("row", "min"), ("left", "max")])
    return found.select(["item", "row_min", "left_max"]).rename_columns(["item", "row", "left"])
