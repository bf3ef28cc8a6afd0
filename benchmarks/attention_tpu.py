"""Compiles loss and gradient of SFT for absent TPUs and prints the memory they take.

    pip install libtpu            # the version that jax[tpu] of this JAX asks for
    python benchmarks/attention_tpu.py                       # v5e:2x4, fsdp 4 x tensor 2
    python benchmarks/attention_tpu.py --topology=v6e:4x4 --tensor=4 --out=attention_tpu.json

A model of Qwen2.5-VL-3B's shape, rows of packed 4k tokens and 4k patches, one row on each device
along fsdp; without and with suffixes, with splash attention and with XLA's. Shapes only: nothing is
computed, so this shows that it compiles and what it needs, neither speed nor results.
"""

import importlib.util
import json
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Without these libtpu asks the network which TPU this machine is.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_WORKER_ID", "0")
import jax
from absl import app, flags
from flax import nnx
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh

from mmsrec_jax.inputs.batch import Room
from mmsrec_jax.models import attention
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.config import DecoderConfig, MLLMConfig, VisionConfig
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import sharding, startup
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.training import sft

_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x4", "As `get_topology_desc` names it.")
_TENSOR = flags.DEFINE_integer(
    "tensor", 2, "Devices along this axis of the mesh; fsdp has the rest."
)
_LENGTH = flags.DEFINE_integer("length", 4096, "Tokens of a row.")
_PATCHES = flags.DEFINE_integer("patches", 4096, "Vision patches of a row.")
_LAYERS = flags.DEFINE_integer("layers", 36, "Of the decoder; the tower has 32.")
_OUT = flags.DEFINE_string("out", None, "A JSON file for the figures.")
GIB = 2**30


def model() -> MLLM:
    text = DecoderConfig(
        vocab_size=151936, hidden=2048, layers=_LAYERS.value, heads=16, kv_heads=2, head_dim=128,
        intermediate=11008, mrope_section=(16, 24, 24), tied=True,
    )  # fmt: skip
    vision = VisionConfig(
        depth=32, hidden=1280, heads=16, intermediate=3420, fullatt_block_indexes=(7, 15, 23, 31)
    )
    config = MLLMConfig(text, vision, 151655, 151652, 151653, remat="full")
    return MLLM(config, rngs=nnx.Rngs(0), param_dtype="float32", dtype="bfloat16")


def topology_mesh() -> Mesh:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("libtpu is not installed: pip install libtpu (it needs no TPU)")
    try:
        devices = topologies.get_topology_desc(
            platform="tpu", topology_name=_TOPOLOGY.value
        ).devices
    except Exception as error:
        raise UserError(f"--topology={_TOPOLOGY.value}: {str(error).splitlines()[0]}") from error
    if len(devices) % _TENSOR.value:
        raise UserError(f"--tensor={_TENSOR.value} does not divide {len(devices)} devices")
    shape = 1, len(devices) // _TENSOR.value, _TENSOR.value
    placed = mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    return Mesh(placed, sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def batch(mesh: Mesh, suffixes: bool) -> Batch:
    """The shapes of a packed batch, with shardings."""
    room = Room(
        rows=mesh.shape["fsdp"],
        length=_LENGTH.value,
        targets=_LENGTH.value // 4,
        patches=_PATCHES.value,
        patch_width=3 * 14 * 14,
        answers=64 if suffixes else 0,
    )
    return sharding.abstract(room.empty(), sharding.batch_sharding(mesh))


def compiled(mesh: Mesh, name: attention.Implementation, suffixes: bool) -> dict:
    """Figures of one compilation; `peak_gib` of a device."""
    graphdef, state = nnx.split(nnx.eval_shape(model))
    where = sharding.shardings(state, mesh)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, where
    )

    def loss(state, batch):
        model = nnx.merge(graphdef, state)
        return sft.loss(model, batch, yes_no_ids=(9454, 2753), listwise_weight=1.0)[0]

    figures = {"implementation": name, "suffixes": suffixes}
    start = time.monotonic()
    try:
        with jax.set_mesh(mesh), attention.force(name):
            step = jax.jit(jax.value_and_grad(loss), out_shardings=(None, where))
            program = step.lower(state, batch(mesh, suffixes)).compile()
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"Used ([\d.]+)G of ([\d.]+)G hbm", str(error))
        if used is None:
            raise
        figures |= {"fits": False, "peak_gib": float(used[1]), "hbm_gib": float(used[2])}
    else:
        calls = re.findall(r'custom_call_target="([^"]+)"', program.as_text())
        peak = program.memory_analysis().peak_memory_in_bytes
        figures |= {"fits": True, "peak_gib": peak / GIB}
        figures |= {"pallas_calls": Counter(calls)["tpu_custom_call"]}
    return figures | {"seconds": time.monotonic() - start}


def main(argv: list[str]) -> None:
    del argv
    try:
        mesh = topology_mesh()
    except UserError as error:
        sys.exit(f"error: {error}")
    sizes = sum(x.size for x in jax.tree.leaves(nnx.state(nnx.eval_shape(model))))
    print(
        f"{_TOPOLOGY.value}: {mesh.size} x {mesh.devices.flat[0].device_kind}, fsdp "
        f"{mesh.shape['fsdp']} x tensor {mesh.shape['tensor']}; {sizes / 1e9:.2f}B parameters, "
        f"{mesh.shape['fsdp']} rows of {_LENGTH.value} tokens and {_PATCHES.value} patches"
    )
    results = []
    for suffixes in (False, True):
        for name in ("splash", "xla"):
            figures = compiled(mesh, name, suffixes)
            results.append(figures)
            print(
                f"{name:>6}{' with suffixes' if suffixes else ''}: peak {figures['peak_gib']:.2f} "
                f"GiB a device{'' if figures['fits'] else ' (does not fit)'}, "
                f"{figures.get('pallas_calls', 0)} Pallas calls, "
                f"compiled in {figures['seconds']:.0f} s",
                flush=True,
            )
    if _OUT.value:
        about = {"jax": jax.__version__, "topology": _TOPOLOGY.value, "mesh": dict(mesh.shape)}
        about |= {"parameters": sizes, "length": _LENGTH.value, "patches": _PATCHES.value}
        Path(_OUT.value).write_text(json.dumps(about | {"runs": results}, indent=2) + "\n")


if __name__ == "__main__":
    startup.plain_log_lines()
    app.run(main)
