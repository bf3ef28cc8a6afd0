"""The users of one partition: their interactions in time order, without what a look at one user
drops."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmsrec_jax.data import filters
from mmsrec_jax.data.partitioned import spills
from mmsrec_jax.data.partitioned.plan import Plan
from mmsrec_jax.data.records import Histories

WITH_IMAGE = "with-image"
"""File of the ids of the items that have an image, where others are dropped."""


def clean(plan: Plan, names: list[str], part: int) -> int:
    """Writes what is left of a partition, and what there was; returns its number.

        users-PART   user, row: the users that are left, and the first row of each in the files
        items-PART   item, row, left: all items, the first row of each, and after how many filters
                     they are still there
        rows-PART    lengths of the users' histories; items, in terms of items-PART; times, ratings
        counts-PART  users, rows: after no filter, one, two, ...; lengths: of how many users before

    names: of all spills.

    Raises:
      UserError: a threshold, and the data has no ratings.
    """
    table = spills.of_partition(plan, names, part)
    rows = table["row"].to_numpy()
    users, user_of_row = _encoded(table["user"])
    items, item_of_row = _encoded(table["item"])
    ratings = None if table["rating"].null_count else table["rating"].to_numpy()
    seconds = table["time"].to_numpy() / 1000
    del table
    histories = Histories.from_rows(
        np.array(users.to_pylist(), np.str_), user_of_row, item_of_row, seconds, ratings
    )
    stages = _filtered(plan, histories, items)
    left = np.zeros(len(items), np.uint8)
    for number, stage in enumerate(stages):
        left[stage.items] = number
    kept = stages[-1]
    found = pc.index_in(pa.array(kept.users.tolist(), pa.string()), value_set=users).to_numpy()
    columns = {"user": users.take(pa.array(found)), "row": rows[_first(user_of_row)[found]]}
    plan.put_tables(f"users-{part}", [pa.record_batch(columns)])
    columns = {"item": items, "row": rows[_first(item_of_row)], "left": left}
    plan.put_tables(f"items-{part}", [pa.record_batch(columns)])
    arrays = {"lengths": kept.lengths, "items": kept.items, "times": kept.timestamps}
    if kept.ratings is not None:
        arrays["ratings"] = kept.ratings
    plan.put_arrays(f"rows-{part}", **arrays)
    counts = {
        "users": np.array([len(stage) for stage in stages]),
        "rows": np.array([len(stage.items) for stage in stages]),
        "lengths": np.bincount(histories.lengths),
    }
    plan.put_arrays(f"counts-{part}", **counts)
    return part


def _filtered(plan: Plan, histories: Histories, items: pa.Array) -> list[Histories]:
    """Before all filters, after the first one, and so on: as `data.build` orders them."""
    found = [histories]
    if plan.rating_threshold is not None:
        found.append(filters.at_least(found[-1], plan.rating_threshold))
    found.append(filters.first_of_repeats(found[-1]))
    if plan.only_items_with_image:
        has_image = pc.is_in(items, value_set=plan.table(WITH_IMAGE)["item"])
        found.append(filters.only_items(found[-1], has_image.to_numpy(zero_copy_only=False)))
    return found


def _encoded(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """The distinct texts in order of appearance, and int32[n] indices into them."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary, encoded.indices.to_numpy()


def _first(codes: np.ndarray) -> np.ndarray:
    """int64[m]: where each of the codes 0..m-1 comes first."""
    return np.unique(codes, return_index=True)[1]
