"""A published data set as `data.published.read` and the filters of `data.build` give it, by Apache
Beam."""

import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from absl import logging
from etils import epath

from mmsrec_jax.data import filters
from mmsrec_jax.data.column_items import ColumnItems
from mmsrec_jax.data.partitioned import core, items, spills, users
from mmsrec_jax.data.partitioned.core import State
from mmsrec_jax.data.partitioned.pipeline import Runner
from mmsrec_jax.data.partitioned.plan import Plan
from mmsrec_jax.data.published import read as published_read
from mmsrec_jax.data.published.rows import Notes
from mmsrec_jax.data.published.source import Source
from mmsrec_jax.data.records import Histories
from mmsrec_jax.data.report import Dropped, Report, describe_lengths
from mmsrec_jax.runtime.buckets.given import local
from mmsrec_jax.runtime.buckets.objects import is_url, require

OF_THE_LEFT = "of the items that are left: "
"""Begins the notes of a report on how the publisher describes items: others are not looked up."""
PART_BYTES = 64 << 20  # of unpacked text, about, for a partition
_MOST_PARTS = 1024
_PACKED = 5  # times as small is a .gz, about


def read(
    source: Source,
    given: str,
    beam_options: str,
    *,
    rating_threshold: float | None,
    only_items_with_image: bool,
    user_core: int,
    item_core: int,
    images_root: Path | None,
    fields: published_read.Fields,
) -> tuple[ColumnItems, Histories, Report]:
    """The interactions that the filters leave, and their items.

    The same as in memory, row for row, where the order of equal times is drawn afterwards. Only
    items that are left are looked up in the publisher's files; notes of these say so.

    Args:
      given: folder of the data set, also in a bucket.
      beam_options: see `pipeline.Runner`.
      fields: what is read of the items.
      Others: as of `data.build.DataSettings`.

    Raises:
      UserError: as `data.published.read.read` and `pipeline.Runner`.
    """
    root = local(given).resolve()
    runner = Runner(beam_options, given)
    published_read.check(source, root, with_items=bool(fields.all))
    paths = list(published_read.interaction_files(source, root))
    images = published_read.images_of(source, root, images_root)
    report = Report(source=f"{source.name} in {root}")
    with _folder(runner.folder) as folder:
        parts = _parts(paths)
        plan = Plan(
            source.name, folder, parts, rating_threshold, user_core, item_core,
            only_items_with_image,
        )  # fmt: skip
        logging.info("data: Beam reads %s in %d partitions, in %s", source.name, parts, folder)
        if only_items_with_image:
            batch = pa.record_batch({"item": pa.array(sorted(images), pa.string())})
            plan.put_tables(users.WITH_IMAGE, [batch])
        names, state = runner.run(plan, _addresses(given, root, paths))
        notes = spills.notes_of(plan, names)
        known = plan.table(items.FILE)
        histories = _gathered(plan, state)
        _describe(report, plan, known["left"].to_numpy(), histories)
    if not report.read["interactions"]:
        raise published_read.without_interactions(source, root)
    histories, kept = filters.reindex(histories)
    seen = known["item"].take(pa.array(kept)).to_pylist()
    found: Notes = Counter()
    catalog = published_read.items_of(source, root, seen, fields, images, found)
    notes.update({OF_THE_LEFT + what: count for what, count in found.items()})
    if images:
        all_items = (id.as_py() for id in known["item"])
        notes[published_read.UNUSED_IMAGES] += published_read.unused(images, all_items)
    place = {id: i for i, id in enumerate(catalog.ids)}
    order = np.array([place[id] for id in seen], np.int32)
    for what, count in notes.items():
        report.note(what, count)
    return catalog, replace(histories, items=order[histories.items]), report


@contextmanager
def _folder(given: str) -> Iterator[str]:
    """A new folder in the one that is given, else on this machine; it is removed at the end."""
    if not given:
        with tempfile.TemporaryDirectory(prefix="mmsrec_jax-beam-") as folder:
            yield folder
        return
    if is_url(given):
        require(given)
    path = epath.Path(given) / f"mmsrec_jax-{uuid.uuid4().hex}"
    path.mkdir(parents=True)
    try:
        yield str(path)
    finally:
        path.rmtree()


def _parts(paths: Sequence[Path]) -> int:
    size = sum(p.stat().st_size * (_PACKED if p.suffix == ".gz" else 1) for p in paths)
    return min(max(-(-size // PART_BYTES), 1), _MOST_PARTS)


def _addresses(given: str, root: Path, paths: Sequence[Path]) -> list[str]:
    """Where every worker reads the files: those of a bucket there, and not in this one's copy."""
    if not is_url(given):
        return [str(path) for path in paths]
    return [f"{given.rstrip('/')}/{path.relative_to(root).as_posix()}" for path in paths]


def _gathered(plan: Plan, state: State) -> Histories:
    """What the core leaves, users in the order of their first rows in the files. Items are in terms
    of `items.FILE`. Memory is that of the result and one partition."""
    parts = range(plan.parts)
    names, first, lengths = zip(*(_users_left(plan, state, part) for part in parts), strict=True)
    order = np.argsort(np.concatenate(first))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths)[order])])
    starts = np.empty(len(order), np.int64)
    starts[order] = offsets[:-1]
    codes, times = np.empty(offsets[-1], np.int32), np.empty(offsets[-1])
    ratings = np.empty(offsets[-1], np.float32)
    begin, is_rated = 0, True
    for part, counts in zip(parts, lengths, strict=True):
        before = np.cumsum(counts) - counts
        places = np.repeat(starts[begin : begin + len(counts)] - before, counts)
        places += np.arange(len(places))
        left, found = core.rows(plan, state, part), plan.arrays(f"rows-{part}")
        codes[places] = plan.arrays(f"codes-{part}")["items"][left]
        times[places] = found["times"][left]
        if "ratings" in found:
            ratings[places] = found["ratings"][left]
        is_rated = is_rated and "ratings" in found
        begin += len(counts)
    users = pa.concat_arrays(names).take(pa.array(order)).to_pylist()
    return Histories(np.array(users, np.str_), offsets, codes, times, ratings if is_rated else None)


def _users_left(plan: Plan, state: State, part: int) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """Of the users of a partition that the core leaves: ids, first rows in the files, numbers of
    rows that are left."""
    lengths = plan.arrays(f"rows-{part}")["lengths"]
    owners = np.repeat(np.arange(len(lengths)), lengths)[core.rows(plan, state, part)]
    kept, counts = np.unique(owners, return_counts=True)
    table = plan.table(f"users-{part}")
    return table["user"].take(pa.array(kept)), table["row"].to_numpy()[kept], counts


def _describe(report: Report, plan: Plan, left: np.ndarray, histories: Histories) -> None:
    """Fills in what was read and what each filter dropped. left: after how many of the filters of
    `users` each item is there."""
    counts = [plan.arrays(f"counts-{part}") for part in range(plan.parts)]
    width = max(len(one["lengths"]) for one in counts)
    lengths = sum(np.pad(one["lengths"], (0, width - len(one["lengths"]))) for one in counts)
    report.read = describe_lengths(np.repeat(np.arange(width), lengths), len(left))
    whys = [filters.REPEATS, *([filters.WITHOUT_IMAGE] if plan.only_items_with_image else [])]
    if plan.rating_threshold is not None:
        whys.insert(0, filters.rated_below(plan.rating_threshold))
    stages = [
        (sum(int(one["users"][n]) for one in counts), int((left >= n).sum()),
         sum(int(one["rows"][n]) for one in counts))
        for n in range(len(whys) + 1)
    ]  # fmt: skip
    stages.append((len(histories), len(np.unique(histories.items)), len(histories.items)))
    whys.append(filters.core_of(plan.user_core, plan.item_core))
    for why, (before, after) in zip(whys, pairwise(stages), strict=True):
        report.dropped.append(Dropped(why, *(b - a for b, a in zip(before, after, strict=True))))
