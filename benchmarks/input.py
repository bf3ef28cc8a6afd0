"""From JPEG files to batches: pictures and tokens a second, beside a torch DataLoader.

    pip install torch==2.13.0           # the CPU build
    python benchmarks/input.py --out=input.json
    python benchmarks/input.py --tokenizer=DIR --data=DIR/ml-1m   # a Qwen's tokenizer, real posters

Three jobs, the sides in turn, each with --workers processes:

summarizer  every item once, its picture and its text: nothing can be used twice
sft         a user's prompt with a target and --negatives other items, each with its picture. Ours
            share the user's part and are packed; theirs are one conversation a candidate, filled up
            to the longest of its batch. Ours keeps no picture, as if the catalog were much larger
            than the room for them
sft, pictures kept   the same where all fit that room (256 MiB a process)

First the results are compared: the ids of whole prompts must be those of transformers' Qwen2-VL
processor, and our patches its pixel values before normalization, which is the device's part here.
A timing begins when workers have made some batches. Without --tokenizer and --data pictures are
made, and a tokenizer is trained. At the end: cores of this machine that feed one chip with prompts
for Qwen2.5-VL-7B with LoRA, if its step ran at the chip's peak, which none does.
"""

import json
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
from mmsrec_jax.hf import presets  # noqa: E402
from mmsrec_jax.models import flops  # noqa: E402
from mmsrec_jax.runtime.chips import CHIPS  # noqa: E402

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
MODEL, RANK = "qwen2.5-vl-7b", 16
Rates = dict[str, float]


def measured(world: World, side: str, job: str, seconds: float = 20) -> Rates:
    """Of one pipeline, at most so long: what it gives a second, and the share of padding."""
    made = SIDES[side](world, job)
    for _ in range(WARM):
        next(made)
    begun, found = time.perf_counter(), Counter[str]()
    for count in made:
        found.update(count)
        taken = time.perf_counter() - begun
        if taken > seconds:
            break
    made.close()
    return {
        "pictures": found["pictures"] / taken,
        "tokens": found["tokens"] / taken,
        "padding": 1 - found["tokens"] / found["slots"],
    }


def cores(rates: Rates, workers: int, slots: int) -> dict[str, float]:
    """Chip -> processes that keep it busy at its peak, from what `workers` give.

    slots: image tokens of a picture.
    """
    config = presets.config(MODEL)
    side = round(slots**0.5)
    tokens = rates["tokens"] / rates["pictures"]  # of a candidate
    row = flops.Row(round(tokens), 1, [(2 * side, 2 * side)])
    needed = sum(flops.train_step(config, row, flops.Adapters(RANK)).values())
    return {
        name: CHIPS[name].flops / needed / (rates["pictures"] / workers)
        for name in ("v5e", "v5p", "v6e")
    }


def main(argv: list[str]) -> None:
    del argv
    case = Case(
        _DATA.value, _TOKENIZER.value, _ITEMS.value, _USERS.value, _NEGATIVES.value,
        _PIXELS.value, _WORKERS.value,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        world = World(case, Path(directory))
        if len(world.catalog) <= (WARM + 1) * 2 * case.rows:
            sys.exit(f"{len(world.catalog)} items with a picture are too few; raise --items")
        compared, equal = check_equal(world)
        print(f"{equal} of {compared} prompts equal those of transformers", flush=True)
        report: dict = {"compared": compared, "equal": equal, "workers": case.workers}
        for job in JOBS:
            rates: dict[str, list[Rates]] = {side: [] for side in SIDES}
            for repeat in range(_REPEATS.value):
                for side in sorted(SIDES, reverse=bool(repeat % 2)):
                    rates[side].append(measured(world, side, job))
            report[job] = _said(job, rates)
        report["cores"] = cores(report["sft"]["ours"], case.workers, case.pixels // 28**2)
    for chip, count in report["cores"].items():
        print(f"one {chip} at its peak, {MODEL} with LoRA: {count:.2f} processes like these")
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(equal != compared)


def _said(job: str, rates: dict[str, list[Rates]]) -> dict:
    """Medians of each side, and of the ratios of neighbors in time."""
    found: dict = {
        side: {name: statistics.median(one[name] for one in some) for name in some[0]}
        for side, some in rates.items()
    }
    for name in ("pictures", "tokens"):
        pairs = zip(rates["ours"], rates["theirs"], strict=True)
        found[f"ratio_{name}"] = statistics.median(a[name] / b[name] for a, b in pairs)
    for side in SIDES:
        one = found[side]
        print(
            f"{job:18} {side:6} {one['pictures']:8.1f} pictures/s {one['tokens']:9.0f} tokens/s "
            f"{one['padding']:6.1%} padding"
        )
    print(
        f"{job:18} ratio  {found['ratio_pictures']:8.2f} {found['ratio_tokens']:18.2f}", flush=True
    )
    return found


if __name__ == "__main__":
    app.run(main)
