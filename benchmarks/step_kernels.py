"""Where the time of the benchmark's SFT step goes on an H100 that is not here, by a model.

    pip install --no-deps jax-cuda13-plugin==VERSION jax-cuda13-pjrt==VERSION   # no GPU
    python benchmarks/step_kernels.py --remat=dots
    python benchmarks/step_kernels.py --remat=full --trainable=full --largest=30

Compiles the step of `benchmarks/accelerator/peers/sft_ours.py` (Qwen2.5-VL-3B, 4 packed rows of
4096 tokens with images) and lists its kernels. A kernel takes the longer of its bytes at --tb_per_s
and its matrix products at --tflop_per_s, near what `environment` of measure.py found on an H100;
attention takes what its part `attention` found. Kernels do not overlap in the model.
"""

import collections
import json
import math
import os
import re
import sys
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=false")  # as measure.py does
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags  # noqa: E402
from jax.sharding import Mesh  # noqa: E402

from benchmarks.accelerator.peers import ours, sft_ours, weights  # noqa: E402
from mmsrec_jax.models.batch import Batch  # noqa: E402
from mmsrec_jax.planning import topologies  # noqa: E402
from mmsrec_jax.planning.hlo import Instruction, Program  # noqa: E402
from mmsrec_jax.runtime import sharding  # noqa: E402
from mmsrec_jax.runtime.chips import CHIPS  # noqa: E402

_REMAT = flags.DEFINE_enum("remat", "dots", ["none", "full", "dots"], "What layers keep.")
_TRAINABLE = flags.DEFINE_enum("trainable", "lora", ["lora", "full"], "What is trained.")
_PARTS = flags.DEFINE_integer("parts", 1, "Backward passes that the rows are divided among.")
_TB = flags.DEFINE_float("tb_per_s", 3.0, "Memory bandwidth.")
_TFLOP = flags.DEFINE_float("tflop_per_s", 650.0, "Of matrix products in bfloat16.")
_LARGEST = flags.DEFINE_integer("largest", 0, "Kernels listed one by one.")

# Milliseconds of the flash kernels of a layer, forward and each of the two backward: measured for
# the decoder's rows of 4096; for the tower scaled to its patches, 28 layers of windows and 4 of
# whole images.
_ROWS = 4
_ATTENTION = {"text": (0.2486, 0.4327), "tower": (0.308, 0.377)}
_RANKS = {sft_ours.RANK, 2 * sft_ours.RANK, 3 * sft_ours.RANK}  # adapters of one input are joined
_MOVES = {"parameter", "constant", "bitcast", "reshape", "convert", "copy", "transpose", "tuple"}


def write_shape(place: str) -> None:
    """The directory of the benchmark's model, without weights, below `place`."""
    os.environ[weights.PLACE] = place
    raw, where = weights.config(tiny=False), weights.directory(tiny=False)
    where.mkdir()
    (where / "config.json").write_text(json.dumps(raw | {"model_type": "qwen2_5_vl"}))
    weights.processor(raw).save_pretrained(where)


def compiled(variant: sft_ours.Variant) -> tuple[Program, float, int]:
    """The program, GiB of memory, and FLOPs that the step needs."""
    mesh = sharding.make_mesh(devices=topologies.describe("h100:1x1x1").devices)

    def shapes(batch: Batch, mesh: Mesh) -> Batch:
        return sharding.abstract(batch, sharding.batch_sharding(mesh))

    ours.mesh, sft_ours.to_devices = lambda: mesh, shapes
    with tempfile.TemporaryDirectory() as place:
        write_shape(place)
        steps = sft_ours.Steps(tiny=False)
        found = steps.lower(variant).compile()
        needed = steps.work.flops(False, adapters=variant.trainable == "lora")
    return Program(found.as_text()), ours.program_gib(found), needed


def product(program: Program, instruction: Instruction) -> tuple[int, int, bool] | None:
    """FLOPs and bytes of a cuBLAS call, and whether it is of adapters; None of what is none."""
    call = next((i for i in program.inside(instruction) if "cublas" in i.attributes), None)
    if call is None:
        return None
    operands, result = program.operands(call), call.arrays[0]
    axes = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', call.attributes)
    assert axes is not None, "every product contracts something"
    inner = math.prod(operands[0].dims[int(axis)] for axis in re.findall(r"\d+", axes[1]))
    low = bool(_RANKS & {inner, *result.dims})
    size = result.bytes + sum(operand.bytes for operand in operands)
    return 2 * math.prod(result.dims) * inner, size, low


def kind(program: Program, instruction: Instruction) -> str:
    opcodes = {each.opcode for each in program.inside(instruction)}
    if "dynamic-update-slice" in opcodes:
        return "kept for the backward pass"
    if "reduce" in opcodes:
        return "reductions"
    if opcodes <= _MOVES | {"dynamic-slice", "broadcast"} or instruction.opcode in _MOVES:
        return "copies, slices and zeros"
    return "elementwise"


def kernels(program: Program) -> list[tuple[float, str, float, str]]:
    """Seconds in a step, group, TFLOP and description of every kernel."""
    found = []
    for instruction, times, size in program.traffic():
        shapes = ", ".join(map(str, instruction.arrays[:3]))
        patches = re.search(r"\b(27136|6784|34[0-9]{2}|1280)\b", shapes)
        part, work, seconds = "tower" if patches else "text", 0, 0.0
        if (made := product(program, instruction)) is not None:
            work, size, low = made
            seconds = max(work / (1e12 * _TFLOP.value), size / (1e12 * _TB.value))
            group = "adapters" if low else "matrix products"
        elif instruction.opcode == "custom-call" and "triton" in instruction.attributes:
            source = instruction.source
            back = "transpose(jvp" in source and "rematted" not in source
            share = instruction.arrays[0].dims[0] / _ROWS
            seconds, group = 1e-3 * share * _ATTENTION[part][back], "attention"
        elif size:
            seconds, group = size / (1e12 * _TB.value), kind(program, instruction)
        if seconds:
            text = f"{times:3d} x {instruction.name}: {shapes}"
            found.append((times * seconds, f"{part}: {group}", times * work / 1e12, text))
    return sorted(found, reverse=True)


def main(argv: list[str]) -> None:
    del argv
    variant = sft_ours.Variant(_TRAINABLE.value, _REMAT.value, _PARTS.value)
    program, gib, needed = compiled(variant)
    found = kernels(program)
    total = sum(row[0] for row in found)
    groups: dict[str, float] = collections.defaultdict(float)
    for seconds, group, _, _ in found:
        groups[group] += seconds
    print(
        f"{variant.case}: {1e3 * total:.0f} ms by the model, {gib:.2f} GiB, "
        f"{sum(row[2] for row in found):.0f} TFLOP computed, {needed / 1e12:.0f} needed, "
        f"MFU {needed / total / CHIPS['h100'].flops:.1%}"
    )
    for group, seconds in sorted(groups.items(), key=lambda item: -item[1]):
        print(f"  {1e3 * seconds:7.1f} ms  {group}")
    for seconds, group, _, text in found[: _LARGEST.value]:
        print(f"  {1e3 * seconds:7.2f} ms  {group:<32} {text}")


if __name__ == "__main__":
    app.run(main)
