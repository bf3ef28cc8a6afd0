"""Memory and time of the step `data` of a large category, in memory and by Apache Beam.

    python benchmarks/large_data.py                  # 10M synthetic ratings
    python benchmarks/large_data.py --rows=1000000 --beam_options=direct_num_workers=2,...
    python benchmarks/large_data.py --sides=memory --most_seconds=180 --most_gib=4
    python benchmarks/large_data.py --sides=beam --rows=30000000

A side reads, filters to the core, splits, indexes and stores, as a run does, on the first two cores
that this process may use. The ratings have the form of Amazon's of 2023, no metadata, and users and
items of very different length: most of both have less than the 5 that the core wants. Each side is
a process of its own. Memory is the most that the process and those that it started had at a time,
each; bytes a row are the sum of both by all ratings. --most_seconds and --most_gib are limits of
each side: above one, and where the sides leave other rows, the status is 1. Beam needs the extra
[beam].
"""

import hashlib
import os
import resource
import sys
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from absl import app, flags

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))

_ROWS = flags.DEFINE_integer("rows", 10_000_000, "Ratings.", 1000)
_PLACE = flags.DEFINE_string("place", None, "Folder for the ratings and what Beam leaves between.")
_OPTIONS = flags.DEFINE_string(
    "beam_options", "runner=DirectRunner", "As config.data.beam_options."
)
_SIDES = flags.DEFINE_multi_enum("sides", ["memory", "beam"], ["memory", "beam"], "Which to run.")

_MOST_SECONDS = flags.DEFINE_float("most_seconds", None, "Of a side.", 0.0)
_MOST_GIB = flags.DEFINE_float("most_gib", None, "Of a process of a side.", 0.0)

_CORES = 2
_AT_ONCE = 1_000_000
_START = 1_400_000_000_000


def write(path: Path, rows: int) -> None:
    """Ratings of rows / 3 users and rows / 20 items at most, whose numbers of rows are far from
    equal."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        for begin in range(0, rows, _AT_ONCE):
            count = min(_AT_ONCE, rows - begin)
            users = (rows // 3 * rng.random(count) ** 2.5).astype(np.int64)
            items = (rows // 20 * rng.random(count) ** 3).astype(np.int64)
            table = pa.table({
                "user_id": _ids("AE", 26, users),
                "parent_asin": _ids("B", 9, items),
                "rating": pa.array(rng.integers(1, 6, count).astype(np.float64)),
                "timestamp": pa.array(_START + rng.integers(3 * 10**11, size=count)),
            })  # fmt: skip
            options = pa.csv.WriteOptions(include_header=not begin, quoting_style="none")
            pa.csv.write_csv(table, file, options)


def _ids(letters: str, width: int, numbers: np.ndarray) -> pa.Array:
    padded = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0")
    return pc.binary_join_element_wise(letters, padded, "")


def side(root: str, options: str, out: str, to: Connection) -> None:
    """Sends seconds, processor seconds, bytes of memory of this process and of those that it
    started, and a digest and the number of the rows that are left. out: folder that is made."""
    from mmsrec_jax.data import build

    began = time.monotonic()
    settings = build.DataSettings(
        source="amazon_reviews_2023/Books-0core", root=root, text_fields=(), beam_options=options
    )
    build.build(settings, Path(out))
    seconds = time.monotonic() - began
    own, others = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    histories = build.open_built(settings, Path(out)).histories
    digest = hashlib.sha256()
    for name in ("users", "offsets", "items", "timestamps", "ratings"):
        digest.update(getattr(histories, name).tobytes())
    busy = sum(each.ru_utime + each.ru_stime for each in (own, others))
    memory = own.ru_maxrss << 10, others.ru_maxrss << 10
    to.send((seconds, busy, *memory, digest.hexdigest(), len(histories.items)))


def exceeded(seconds: float, memory: int) -> list[str]:
    """Which of the limits that were given do not hold."""
    limits = (
        (_MOST_SECONDS.value, seconds, "seconds"),
        (_MOST_GIB.value, memory / 2**30, "GiB"),
    )
    return [
        f"{found:.2f} {unit}, at most {most:g} were wanted"
        for most, found, unit in limits
        if most is not None and found > most
    ]


def main(_: list[str]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:_CORES])
    context = get_context("spawn")
    digests, wrong = set(), []
    with tempfile.TemporaryDirectory(dir=_PLACE.value) as folder:
        path = Path(folder) / "0core/rating_only/Books.csv"
        write(path, _ROWS.value)
        print(f"{_ROWS.value:,} ratings, {path.stat().st_size >> 20:,} MiB", flush=True)
        between = f",temp_location={folder}/between"
        for name in _SIDES.value:
            options = _OPTIONS.value + between if name == "beam" else ""
            here, there = context.Pipe()
            out = Path(folder) / f"out-{name}"
            out.mkdir()
            process = context.Process(target=side, args=(folder, options, str(out), there))
            process.start()
            there.close()
            seconds, busy, own, others, digest, left = here.recv()
            process.join()
            digests.add(digest)
            apart = f" and {others / 2**30:.2f} GiB in another process" if others else ""
            times = f"{seconds:.0f} s, {busy:.0f} s of processor time"
            each = (own + others) / _ROWS.value
            memory = f"{own / 2**30:.2f} GiB{apart}, {each:.0f} bytes a row"
            print(f"{name}: {times}, {memory}; {left:,} rows left", flush=True)
            wrong += [f"{name}: {problem}" for problem in exceeded(seconds, max(own, others))]
    if len(digests) > 1:
        wrong.append("the two sides left other rows")
    if wrong:
        raise SystemExit("; ".join(wrong))


if __name__ == "__main__":
    app.run(main)
