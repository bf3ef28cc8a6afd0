"""Interactions in the order of the files, cut into files that hold a table for each partition."""

import zlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from mmsrec_jax.data.partitioned.plan import Plan
from mmsrec_jax.data.published import catalog
from mmsrec_jax.data.published.rows import Notes, Rows
from mmsrec_jax.runtime.buckets.given import local
from mmsrec_jax.runtime.errors import UserError

ROWS = 1_000_000  # that are in memory at once
_FILE = 40  # bits of a row number below the number of its file


def write(plan: Plan, file: tuple[int, str]) -> Iterator[str]:
    """The names of what the interactions of a file were written to, in any order.

    One worker reads a file: the numbers of rows and of lines that are wrong need its order.

    file: its number among those of the data set, and where it is, also in a bucket.

    Raises:
      UserError: as the reader of the source; it has no times.
    """
    number, path = file
    notes: Notes = Counter()
    held: list[pa.Table] = []
    first, count = number << _FILE, 0
    for rows in catalog.find(plan.source).rows(local(path), notes=notes):
        if rows.times is None:
            raise UserError(
                f"config.data.beam_options: {plan.source} has an order and no times, which is read "
                "in memory alone; leave beam_options out"
            )
        held.append(_table(plan, rows, first))
        first += len(rows)
        if sum(map(len, held)) >= ROWS:
            yield _write(plan, f"spill-{number:03}-{count:06}", held, notes)
            held, count = [], count + 1
            notes.clear()
    if held or notes:
        yield _write(plan, f"spill-{number:03}-{count:06}", held, notes)


def of_partition(plan: Plan, names: list[str], part: int) -> pa.Table:
    """The rows of a partition in their order in the files. names: of all spills."""
    batches = [plan.table(name, part) for name in sorted(names)]
    return pa.Table.from_batches(batches, batches[0].schema if batches else _SCHEMA)


def notes_of(plan: Plan, names: list[str]) -> Notes:
    """What was noticed while reading."""
    found: Notes = Counter()
    for name in names:
        found.update(plan.record(f"{name}-notes"))
    return found


_SCHEMA = pa.schema({
    "user": pa.string(), "item": pa.string(), "row": pa.int64(), "time": pa.int64(),
    "rating": pa.float32(),
})  # fmt: skip


def _table(plan: Plan, rows: Rows, first: int) -> pa.Table:
    users = rows.users.dictionary.to_pylist()
    part_of = np.array([zlib.crc32(user.encode()) % plan.parts for user in users], np.int32)
    none = pa.nulls(len(rows), pa.float32())
    columns = {
        "user": rows.users.dictionary_decode(),
        "item": rows.items.dictionary_decode(),
        "row": np.arange(first, first + len(rows)),
        "time": rows.times,
        "rating": none if rows.ratings is None else rows.ratings,
    }
    table = pa.table(columns, schema=_SCHEMA)
    return table.append_column("part", pa.array(part_of[rows.users.indices.to_numpy()]))


def _write(plan: Plan, name: str, held: list[pa.Table], notes: Notes) -> str:
    table = pa.concat_tables(held) if held else _SCHEMA.empty_table()
    parts = table["part"].to_numpy() if held else np.zeros(0, np.int32)
    order = np.argsort(parts, kind="stable")
    ordered = table.select(_SCHEMA.names).take(order).combine_chunks()
    ends = np.cumsum(np.bincount(parts, minlength=plan.parts))
    batches = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        found = ordered.slice(start, end - start).to_batches()
        batches.append(found[0] if found else pa.RecordBatch.from_pylist([], _SCHEMA))
    plan.put_tables(name, batches)
    plan.put_record(f"{name}-notes", dict(notes))
    return name
