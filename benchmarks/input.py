"""From JPEG files to batches: examples, pictures and tokens a second, beside a torch DataLoader.

    pip install torch==2.13.0           # the CPU build
    python benchmarks/input.py --out=input.json
    python benchmarks/input.py --tokenizer=DIR --data=DIR/ml-1m   # a Qwen's tokenizer, real posters

Three jobs, the sides in turn, each with --workers processes:

summarizer  every item once, its picture and its text: nothing can be used twice
sft         a user's prompt with a target and --negatives other items, each with its picture. Ours
            share the user's part and are packed; theirs are one conversation a candidate, filled up
            to the longest of its batch. Ours keeps no picture, as if the catalog were much larger
            than the room for them. Rows are filled as those of configs/beauty.py (`look_ahead`)
sft, pictures kept   the same where all fit that room (256 MiB a process)

First the results are compared: the ids of whole prompts must be those of transformers' Qwen2-VL
processor, and our patches its pixel values before normalization, which is the device's part here.
An example is an item to summarize, or one candidate of a user.
A timing begins when workers have made some batches. "ms of a core" is processor time of all
processes for a picture: it says more than pictures/s where other work shares the cores. Without
--tokenizer and --data pictures are made, and a tokenizer is trained.

At the end: cores of this machine that feed one chip, if each SFT step took its roofline time, which
none does: full rows of configs/beauty.py, the steps of docs/pods.csv, and prompts of job sft.
"""

import csv
import json
import math
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from absl import app, flags

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))

from benchmarks.input_sides import Case, World, check_equal, ours, theirs  # noqa: E402
from configs import beauty  # noqa: E402
from mmsrec_jax.runtime import input_workers  # noqa: E402

_TOKENIZER = flags.DEFINE_string("tokenizer", "", "Folder of a Qwen's tokenizer; else one is made.")
_DATA = flags.DEFINE_string("data", "", "Folder of atomic files with images; else some are made.")
_ITEMS = flags.DEFINE_integer("items", 768, "Items with a picture.")
_USERS = flags.DEFINE_integer("users", 512, "Targets of users in the job sft.")
_NEGATIVES = flags.DEFINE_integer("negatives", 7, "Other items beside a target.")
_PIXELS = flags.DEFINE_integer("pixels", 56 * 28 * 28, "Largest area of a resized picture.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes of each side.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timings of each side.")
_OUT = flags.DEFINE_string("out", None, "Where to write the figures as JSON.")

SIDES = {"ours": ours, "theirs": theirs}
JOBS = ("summarizer", "sft", "sft, pictures kept")
WARM = 4  # batches before a timing begins
PODS = _ROOT / "docs/pods.csv"
MODEL, MACHINES = "qwen2.5-vl-7b", ("v5e-64", "v5p-64")
Rates = dict[str, float]


def measured(world: World, side: str, job: str, seconds: float = 20) -> Rates:
    """Of one pipeline, at most so long: what it gives a second, and the share of padding."""
    made = SIDES[side](world, job)
    for _ in range(WARM):
        next(made)
    begun, used, found = time.perf_counter(), processor_seconds(), Counter[str]()
    for count in made:
        found.update(count)
        taken, computed = time.perf_counter() - begun, processor_seconds() - used
        if taken > seconds:
            break
    made.close()
    return {
        "examples": found["examples"] / taken,
        "pictures": found["pictures"] / taken,
        "tokens": found["tokens"] / taken,
        "padding": 1 - found["tokens"] / found["slots"],
        "milliseconds": 1e3 * computed / found["pictures"],
    }


def processor_seconds() -> float:
    """Of this process and those that it has started and that run."""
    ticks = 0
    for child in multiprocessing.active_children():
        stat = Path(f"/proc/{child.pid}/stat")
        if stat.exists():
            ticks += sum(map(int, stat.read_text().rpartition(")")[2].split()[11:13]))
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def cores(rates: Rates) -> list[dict]:
    """Of SFT cases of docs/pods.csv: what a chip reads, and how many cores make that in the same
    time. rates: of one side in one job."""
    length = beauty.get_config().sft.length
    each = rates["milliseconds"] / 1e3 * rates["pictures"] / rates["tokens"]  # core seconds a token
    found = []
    with PODS.open(newline="") as file:
        for row in csv.DictReader(file):
            if (row["step"], row["model"]) != ("sft", MODEL) or row["machine"] not in MACHINES:
                continue
            step = max(float(row[f"{name}_ms"]) for name in ("compute", "memory", "network"))
            chips = math.prod(map(int, re.findall(r"mesh\.\w+=(\d+)", row["flags"])))
            batch = int(re.findall(r"batch_size=(\d+)", row["flags"])[0])
            tokens = batch * length / chips / step * 1e3
            case = {name: row[name] for name in ("model", "training", "machine")}
            found.append(case | {"step_ms": step, "tokens": tokens, "cores": tokens * each})
    return found


def main(argv: list[str]) -> None:
    del argv
    input_workers.keep_jax_out()  # as launch/train.py does; forks of torch are not concerned
    case = Case(
        _DATA.value, _TOKENIZER.value, _ITEMS.value, _USERS.value, _NEGATIVES.value,
        _PIXELS.value, _WORKERS.value, beauty.get_config().sft.look_ahead,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        world = World(case, Path(directory))
        if len(world.catalog) <= (WARM + 1) * 2 * case.rows:
            sys.exit(f"{len(world.catalog)} items with a picture are too few; raise --items")
        compared, equal = check_equal(world)
        print(f"{equal} of {compared} prompts equal those of transformers", flush=True)
        report: dict = {
            "compared": compared,
            "equal": equal,
            "workers": case.workers,
            "look_ahead": case.look_ahead,
        }
        for job in JOBS:
            rates: dict[str, list[Rates]] = {side: [] for side in SIDES}
            for repeat in range(_REPEATS.value):
                for side in sorted(SIDES, reverse=bool(repeat % 2)):
                    rates[side].append(measured(world, side, job))
            report[job] = _said(job, rates)
        report["cores"] = cores(report["sft"]["ours"])
    print(f"{MODEL}, on a core like these")
    print("| machine, training | roofline step, ms | tokens/s a chip | cores a chip |")
    for case in report["cores"]:
        print(
            f"| {case['machine']}, {case['training']} | {case['step_ms']:.0f} | "
            f"{case['tokens']:,.0f} | {case['cores']:.2f} |"
        )
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(equal != compared)


def _said(job: str, rates: dict[str, list[Rates]]) -> dict:
    """Medians of each side, and of the ratios of neighbors in time."""
    found: dict = {
        side: {name: statistics.median(one[name] for one in some) for name in some[0]}
        for side, some in rates.items()
    }
    for name in ("examples", "pictures", "tokens", "milliseconds"):
        pairs = zip(rates["ours"], rates["theirs"], strict=True)
        found[f"ratio_{name}"] = statistics.median(a[name] / b[name] for a, b in pairs)
    for side in SIDES:
        one = found[side]
        print(
            f"{job:18} {side:6} {one['examples']:8.1f} examples/s "
            f"{one['pictures']:8.1f} pictures/s {one['tokens']:9.0f} tokens/s "
            f"{one['padding']:6.1%} padding {one['milliseconds']:6.2f} ms of a core"
        )
    print(
        f"{job:18} ratio  {found['ratio_examples']:8.2f} {found['ratio_pictures']:19.2f} "
        f"{found['ratio_tokens']:20.2f} {found['ratio_milliseconds']:32.2f}",
        flush=True,
    )
    return found


if __name__ == "__main__":
    app.run(main)
