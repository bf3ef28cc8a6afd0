"""Forward and train step here and in transformers on torch, in turn, on the same weights and rows.

    python benchmarks/model.py                                        (or: make bench-model)
    python benchmarks/model.py --attention=sdpa --out=model.json

Two models with random weights: a LLaVA of SmolLM2-135M's and DINOv2-S's shape, and a Qwen2.5-VL of
0.12B (hidden 512, 12 layers, vocabulary 151,936, tower of 8 layers), each on rows of text alone and
on rows with images. A train step is forward, loss of the answer, backward, clipping by the global
norm and AdamW; a forward is the loss alone. transformers, too, computes logits of the answer only.

Each side lives in a process of its own on the same `--threads` cores, loads the same safetensors,
and is timed in turn with the other; losses of both must agree at the start and after the updates.
In float32 on the CPU; on a GPU in bfloat16 with float32 weights. What is printed:

- tokens/s of both (median over `--repeats`), their ratio, and the ratio of processor time, which
  tells more on a shared machine; model GFLOP/s (`models/flops.py`) of both
- what the gap is made of: the step's matrix products alone, of the same shapes; the optimizer
  alone; the rest
- memory of the train step: by how much the resident memory of each process exceeds what it held
  with the weights loaded (ours: with what compiling left behind; on a GPU: all that is allocated),
  and what XLA says the compiled step needs
"""

import json
import statistics
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

import model_sides
import processes
from absl import app, flags

_ROWS = flags.DEFINE_integer("rows", 2, "Rows of a batch.")
_LENGTH = flags.DEFINE_integer("length", 512, "Tokens of a row, image slots among them.")
_TARGETS = flags.DEFINE_integer("targets", 64, "Tokens of the answer, at the end of a row.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timings of each kind, after one that is dropped.")
_THREADS = flags.DEFINE_integer("threads", 2, "Cores of each side; they work in turn.")
_REMAT = flags.DEFINE_enum("remat", "dots", ["none", "full", "dots"], "What our layers keep.")
_ATTENTION = flags.DEFINE_enum(
    "attention", None, ["eager", "sdpa"], "Of theirs; by default sdpa on a GPU, else eager."
)
_MODELS = flags.DEFINE_multi_enum(
    "model", list(model_sides.SHAPES), list(model_sides.SHAPES), "Which models."
)
_OUT = flags.DEFINE_string("out", None, "Where to write the figures as JSON.")

SIDES = ("ours", "theirs")
WORKS = ("train", "forward")
TOLERANCE = 2e-3  # of losses of about log(vocabulary), after some updates


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def compare(directory: Path, name: str, images: bool) -> dict:
    """All figures of one model and one kind of rows."""
    case = model_sides.Case(
        rows=_ROWS.value, length=_LENGTH.value, targets=_TARGETS.value, images=images,
        threads=_THREADS.value, remat=_REMAT.value, attention=_ATTENTION.value,
    )  # fmt: skip
    title = f"{name}, {'images' if images else 'text'}"
    sides = {
        side: processes.Side(model_sides.serve, side, str(directory), name, case) for side in SIDES
    }
    found = {"model": name, "images": images, "tokens": case.rows * case.length}
    try:
        for side, call in sides.items():
            found[side] = call("load")
            say(f"{title}: {side} ready")
        found["flops"] = found["ours"].pop("flops")
        for work in (*WORKS, *model_sides.PARTS):
            timed = {side: [] for side in SIDES}
            for repeat in range(_REPEATS.value + 1):
                for side in SIDES if repeat % 2 else SIDES[::-1]:
                    timed[side].append(sides[side](work))
            for side in SIDES:
                found[side][work] = {
                    kind: statistics.median(each[kind] for each in timed[side][1:])
                    for kind in ("seconds", "processor_seconds")
                }
            each = ", ".join(f"{side} {found[side][work]['seconds']:.2f} s" for side in SIDES)
            say(f"{title}: {work} {each}")
            if work == "train":
                losses = {side: [each["result"] for each in timed[side]] for side in SIDES}
                found |= {"losses": losses, "apart": apart(title, losses)}
                for side in SIDES:
                    found[side]["growth"] = sides[side]("memory")
    finally:
        for call in sides.values():
            call.close()
    return found


def apart(title: str, losses: dict[str, list[float]]) -> float:
    """The largest distance of the losses of the two sides; ends the program when it is large."""
    distance = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    if not distance <= TOLERANCE:
        raise SystemExit(f"{title}: losses {losses} are {distance:.1e} apart")
    return distance


def report(found: dict) -> None:
    """The tables of one case."""
    ours, theirs, tokens = found["ours"], found["theirs"], found["tokens"]
    print(
        f"\n{found['model']}, {'rows with images' if found['images'] else 'text alone'}, "
        f"{tokens} tokens a step; losses at most {found['apart']:.0e} apart\n"
        f"{'':10}{'tok/s ours':>11}{'torch':>8}{'ratio':>7}{'(cpu)':>8}"
        f"{'GFLOP/s ours':>14}{'torch':>7}"
    )
    for work in ("forward", "train"):
        a, b = (side[work]["seconds"] for side in (ours, theirs))
        c, d = (side[work]["processor_seconds"] for side in (ours, theirs))
        giga = found["flops"][work] / 1e9
        print(
            f"{work:10}{tokens / a:11.0f}{tokens / b:8.0f}{b / a:7.2f}{f'({d / c:.2f})':>8}"
            f"{giga / a:14.1f}{giga / b:7.1f}"
        )
    print("a train step is made of (processor seconds in brackets):")
    rest = {}
    for part in ("train", *model_sides.PARTS, "rest"):
        values = rest
        if part != "rest":
            values = {
                (side, kind): found[side][part][kind]
                for side in SIDES
                for kind in ("seconds", "processor_seconds")
            }
            rest = {key: rest[key] - x for key, x in values.items()} if rest else values
        (a, c), (b, d) = (
            (values[side, "seconds"], values[side, "processor_seconds"]) for side in SIDES
        )
        print(
            f"  {part:10}ours {a:7.3f} s ({c:.3f}), torch {b:7.3f} s ({d:.3f}), "
            f"ratio {b / a:.2f} ({d / c:.2f})"
        )
    program, arguments, temporary, growth, held = (
        ours[key] / 2**20 for key in ("program", "arguments", "temporary", "growth", "loaded")
    )
    print(
        f"memory of a train step: ours {growth:.0f} MiB, torch {theirs['growth'] / 2**20:.0f} MiB "
        f"beyond what the process held with the weights loaded ({held:.0f}, "
        f"{theirs['loaded'] / 2**20:.0f})\n"
        f"  XLA's program holds {program:.0f} MiB: weights, moments and batch {arguments:.0f}, "
        f"temporary {temporary:.0f}; compiled in {ours['compile_seconds']:.0f} s",
        flush=True,
    )


def main(argv: list[str]) -> None:
    del argv
    everything = []
    with tempfile.TemporaryDirectory() as directory:
        for name in dict.fromkeys(_MODELS.value):
            say(f"{name}: writing random weights")
            writer = get_context("spawn").Process(target=model_sides.write, args=(directory, name))
            writer.start()
            writer.join()
            for images in (False, True):
                everything.append(compare(Path(directory) / name, name, images))
                report(everything[-1])
                if _OUT.value:
                    Path(_OUT.value).write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    app.run(main)
