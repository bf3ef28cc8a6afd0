"""Seconds until the weights of a Hugging Face directory are on the device, beside transformers.

    python benchmarks/loading.py                            # a synthetic Qwen2.5-VL, 1.4 GiB
    python benchmarks/loading.py --model=DIR --out=loading.json

Every timing is a process of its own that has imported its libraries and touched its device; the two
sides take turns. On a CPU transformers maps the file and reads nothing, so its time includes a copy
of every tensor into memory, which is where ours are too; the time without it is printed beside.
The ratio of processor time tells more on a shared machine. All tensors of both sides must be the
same bits. Without --model the directory is of Qwen2.5-VL-3B's shape with --layers layers in both
parts, written to --place and deleted.
"""

import hashlib
import json
import resource
import statistics
import sys
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))

_MODEL = flags.DEFINE_string("model", "", "Directory of a model, instead of a synthetic one.")
_LAYERS = flags.DEFINE_integer("layers", 4, "Layers of a synthetic one.")
_PLACE = flags.DEFINE_string("place", "/dev/shm", "Where a synthetic one is written.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timings of each side.")
_OUT = flags.DEFINE_string("out", None, "Where to write the figures as JSON.")

SIDES = ("ours", "theirs")
DTYPE = "bfloat16"
Digests = dict[str, str]


def write(where: Path, layers: int) -> None:
    from benchmarks.accelerator.peers import weights

    raw = weights.config(tiny=False)
    raw["text_config"]["num_hidden_layers"] = layers
    raw["vision_config"] |= {"depth": layers, "fullatt_block_indexes": [layers - 1]}
    weights.save(raw, where, DTYPE)


def ours(directory: Path, digests: bool) -> tuple[dict[str, float], Digests]:
    import jax
    from flax import nnx

    from mmsrec_jax.hf import exporting, loading
    from mmsrec_jax.runtime import sharding

    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    jax.block_until_ready(jax.device_put(np.zeros(1)))
    start, processor = time.perf_counter(), time.process_time()
    model = loading.load(directory, DTYPE, mesh)
    jax.block_until_ready(jax.tree.leaves(nnx.state(model)))
    seconds = _since(start, processor)
    if not digests:
        return seconds, {}
    read = exporting.of_model(model)
    return seconds, _digests(
        directory, lambda leaf, layer: leaf.write(np.asarray(read(leaf, layer)))
    )


def theirs(directory: Path, digests: bool) -> tuple[dict[str, float], Digests]:
    import torch
    from transformers import AutoModelForImageTextToText

    from mmsrec_jax.hf import mapping

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.zeros(1, device=device)
    start, processor = time.perf_counter(), time.process_time()
    model = AutoModelForImageTextToText.from_pretrained(
        directory, dtype=getattr(torch, DTYPE), device_map=device
    )
    mapped = time.perf_counter()
    if device == "cpu":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()
    else:
        torch.cuda.synchronize()
    seconds = _since(start, processor) | {"seconds_mapped": mapped - start}
    if not digests:
        return seconds, {}
    held = {mapping.canonical(name): tensor for name, tensor in model.state_dict().items()}

    def read(leaf: mapping.ParamSpec, layer: int | None) -> np.ndarray:
        index, count = leaf.part
        tensor = held[leaf.name.format(layer)].cpu()
        return tensor.chunk(count)[index].view(torch.uint16).numpy()

    return seconds, _digests(directory, read)


def _since(start: float, processor: float) -> dict[str, float]:
    return {
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - processor,
    }


def _digests(directory: Path, read: Any) -> Digests:
    """Of every parameter and layer, in the layout of the files."""
    from mmsrec_jax.hf import mapping
    from mmsrec_jax.hf.processor import read_json

    config = mapping.config_from_hf(read_json(directory / "config.json"))
    depth = {"text": config.text.layers, "visual": getattr(config.vision, "depth", 0)}
    found = {}
    for leaf in mapping.leaves(config):
        layers = range(depth[leaf.name.split(".")[0]]) if leaf.stacked else [None]
        for layer in layers:
            values = np.ascontiguousarray(read(leaf, layer))
            digest = hashlib.sha256(values.view(np.uint8).data).hexdigest()
            found[f"{leaf.path} {layer}"] = digest
    return found


def _serve(pipe: Connection, side: str, directory: Path, digests: bool) -> None:
    run = {"ours": ours, "theirs": theirs}[side]
    seconds, found = run(directory, digests)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    pipe.send((seconds | {"peak_gib": peak}, found))


def measured(side: str, directory: Path, digests: bool) -> tuple[dict[str, float], Digests]:
    """One timing, in a process of its own."""
    context = get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(there, side, directory, digests))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        raise SystemExit(f"{side}: failed") from None
    finally:
        process.join()


def compare(directory: Path) -> dict[str, Any]:
    """Medians of both sides and their ratio; ends the program when a tensor differs."""
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors")) / 2**30
    digests = {side: measured(side, directory, digests=True)[1] for side in SIDES}
    wrong = [name for name, digest in digests["ours"].items() if digests["theirs"][name] != digest]
    if wrong or not digests["ours"]:
        raise SystemExit(f"{len(wrong)} tensors differ, the first is {wrong[:1]}")
    timed: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for repeat in range(_REPEATS.value):
        for side in SIDES if repeat % 2 else SIDES[::-1]:
            timed[side].append(measured(side, directory, digests=False)[0])
    found: dict[str, Any] = {"gib": size, "equal_tensors": len(digests["ours"])}
    for side, each in timed.items():
        found[side] = {name: statistics.median(run[name] for run in each) for name in each[0]}
        found[side]["gib_per_second"] = size / found[side]["seconds"]
    for name in ("seconds", "processor_seconds"):
        found[f"ratio_{name}"] = found["theirs"][name] / found["ours"][name]
    return found


def main(argv: list[str]) -> None:
    del argv
    if _MODEL.value:
        found = compare(Path(_MODEL.value))
    else:
        with tempfile.TemporaryDirectory(dir=_PLACE.value) as folder:
            directory = Path(folder) / "model"
            writer = get_context("spawn").Process(target=write, args=(directory, _LAYERS.value))
            writer.start()
            writer.join()
            found = compare(directory)
    text = json.dumps(found, indent=1)
    print(text)
    if _OUT.value:
        Path(_OUT.value).write_text(text + "\n")


if __name__ == "__main__":
    app.run(main)
