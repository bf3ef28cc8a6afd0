"""Peak host memory of launch/export.py on a synthetic model, by default of Qwen2.5-VL-3B's shape.

    python benchmarks/export_memory.py --directory=DIR                  # adapters, merged
    python benchmarks/export_memory.py --directory=DIR --trained=full

Writes a base model and a finished run to DIR, exports it in a process of its own, prints that
process's peak resident memory beside one shard + 1 GiB, and deletes what it wrote. `full` trained
every weight: all tensors come from the run's checkpoint, and the base model is config.json alone.
"""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from absl import app, flags
from flax import nnx

from mmsrec_jax.hf import exporting, mapping
from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.models import lora
from mmsrec_jax.models import trainable as trainables
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import startup, workdir
from mmsrec_jax.training import weights

_ROOT = Path(__file__).resolve().parents[1]
_DIRECTORY = flags.DEFINE_string("directory", None, "An empty folder with room for three copies.")
_TRAINED = flags.DEFINE_enum("trained", "lora", ["lora", "full"], "What the run trained.")
_RANK = flags.DEFINE_integer("rank", 16, "Of the adapters.")
_SHARD = flags.DEFINE_float("max_shard_gib", 2.0, "Size of a safetensors file.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of what is written.")
_SIZES = {
    name: flags.DEFINE_integer(name, size, "Of the model.")
    for name, size in {
        "vocab": 151936, "hidden": 2048, "layers": 36, "heads": 16, "kv_heads": 2,
        "intermediate": 11008, "vision_hidden": 1280, "vision_layers": 32, "vision_heads": 16,
        "vision_intermediate": 3420,
    }.items()
}  # fmt: skip


def config_json() -> dict:
    size = {name: flag.value for name, flag in _SIZES.items()}
    head_dim = size["hidden"] // size["heads"]
    quarter = head_dim // 8
    return {
        "model_type": "qwen2_5_vl",
        "image_token_id": 1,
        "vision_start_token_id": 2,
        "vision_end_token_id": 3,
        "tie_word_embeddings": True,
        "vocab_size": size["vocab"],
        "hidden_size": size["hidden"],
        "intermediate_size": size["intermediate"],
        "num_hidden_layers": size["layers"],
        "num_attention_heads": size["heads"],
        "num_key_value_heads": size["kv_heads"],
        "rope_scaling": {
            "type": "mrope",
            "mrope_section": [head_dim // 2 - 2 * quarter, quarter, quarter],
        },
        "vision_config": {
            "depth": size["vision_layers"],
            "hidden_size": size["vision_hidden"],
            "intermediate_size": size["vision_intermediate"],
            "num_heads": size["vision_heads"],
            "out_hidden_size": size["hidden"],
            "window_size": 112,
            "fullatt_block_indexes": [size["vision_layers"] - 1],
        },
    }


def values(shape: tuple[int, ...], dtype, seed: int = 0) -> np.ndarray:
    """Random values, a block of them again and again: compression must not shrink files much.

    Along the first axis of three or more they are one piece of memory: layers are alike.
    """
    block = np.random.default_rng(seed).normal(size=2**20).astype(dtype)
    if len(shape) < 3:
        return np.resize(block, shape)
    return np.broadcast_to(np.resize(block, shape[1:]), shape)


def write_run(directory: Path) -> None:
    """Base model and finished run."""
    base, run = directory / "base", directory / "run"
    base.mkdir(parents=True)
    raw = config_json()
    (base / "config.json").write_text(json.dumps(raw))
    ImageProcessor().save_pretrained(base)

    def make():
        model = MLLM(mapping.config_from_hf(raw), rngs=nnx.Rngs(0), param_dtype=ml_dtypes.bfloat16)
        if _TRAINED.value == "lora":
            lora.add(model, _RANK.value, 2.0 * _RANK.value, rngs=nnx.Rngs(0))
        return model

    model = nnx.eval_shape(make)
    shapes = {".".join(path): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model))}

    def parameters(leaf: mapping.ParamSpec, layer: int | None) -> np.ndarray:
        shape = shapes[leaf.path] if layer is None else shapes[leaf.path][1:]
        return values(shape, ml_dtypes.bfloat16)

    if _TRAINED.value == "lora":
        exporting.write_model(directory / "full", parameters, base, dtype="bfloat16")
        shutil.rmtree(base)
        (directory / "full").rename(base)
    kind = trainables.filter_of(_TRAINED.value)
    leaves, tree = jax.tree.flatten(nnx.state(model, kind))
    trained = [values(leaf.shape, leaf.dtype, seed) for seed, leaf in enumerate(leaves)]
    nnx.update(model, jax.tree.unflatten(tree, trained))
    config = {
        "model": {"path": str(base), "dtype": "bfloat16", "max_pixels": 0},
        "sft": {"trainable": _TRAINED.value, "lora_alpha": 2.0 * _RANK.value},
    }
    step = workdir.Step("sft", lambda own: weights.save(own / "weights", model, kind), config)
    workdir.run_steps(run, [step])


def main(argv: list[str]) -> None:
    del argv
    directory = Path(_DIRECTORY.value).resolve() / "export_memory"
    command = [
        sys.executable, str(_ROOT / "launch" / "export.py"), f"--workdir={directory / 'run'}",
        f"--out={directory / 'out'}", f"--max_shard_gib={_SHARD.value}", f"--dtype={_DTYPE.value}",
    ]  # fmt: skip
    if _TRAINED.value == "lora":
        command.append("--merge")
    # A process counts the memory of the one that starts it as its own, so this one stays small.
    writer = multiprocessing.get_context("fork").Process(target=write_run, args=(directory,))
    try:
        writer.start()
        writer.join()
        start = time.monotonic()
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        files = list((directory / "out").glob("*.safetensors"))
        written = sum(file.stat().st_size for file in files)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    peak, limit = usage.ru_maxrss / 2**20, _SHARD.value + 1
    print(
        f"{_TRAINED.value}: {written / np.dtype(_DTYPE.value).itemsize / 1e9:.2f}B parameters, "
        f"{written / 2**30:.2f} GiB in {len(files)} files, {seconds:.0f} s, peak {peak:.2f} GiB, "
        f"one shard + 1 GiB is {limit:.2f} GiB"
    )
    return 0 if status == 0 and peak <= limit else 1


if __name__ == "__main__":
    startup.plain_log_lines()
    flags.mark_flag_as_required("directory")
    app.run(main)
