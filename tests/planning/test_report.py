"""What is said of a step against what the compiler's own analysis and closed forms say."""

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from configs import beauty, quickstart
from mmsrec_jax.hf import presets
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.models import trainable
from mmsrec_jax.planning import planned, report, steps, topologies
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import from_config

ROOT = Path(__file__).resolve().parents[2]
ROWS, WIDTH = 512, 1024


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(1, 4, 2)


@pytest.fixture(scope="module")
def step(mesh):
    """y = tanh(x w) w', x in four parts, weights in two."""

    def array(shape, *spec):
        where = NamedSharding(mesh, P(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)

    x, w = array((ROWS, WIDTH), "fsdp"), array((WIDTH, WIDTH), None, "tensor")
    function = jax.jit(lambda w, x: jnp.tanh(x @ w) @ w.T)
    kinds = {"parameters": w, "optimizer": None, "batch": x}
    return steps.Step("toy", function, (w, x), kinds, required=4 * ROWS * WIDTH**2)


def measure(step, mesh, limit):
    return report.measure(step, topologies.describe("cpu:8"), mesh, limit)


def test_memory_by_kind_and_roofline(step, mesh):
    found = measure(step, mesh, 2**30)
    with jax.set_mesh(mesh):
        memory = step.function.lower(*step.arguments).compile().memory_analysis()
    assert found["fits"] and found["peak"] == report.peak_bytes(memory)
    assert found["memory"]["parameters"] == 4 * WIDTH**2 / 2
    assert found["memory"]["batch"] == 4 * ROWS * WIDTH / 4
    assert sum(found["memory"].values()) == found["peak"]
    assert memory.argument_size_in_bytes == sum(found["memory"][k] for k in ("parameters", "batch"))
    assert found["seconds"]["compute"] == 4 * ROWS * WIDTH**2 / 8 / 1e12
    (sums,) = found["collectives"]  # of the second product, over the two parts of its inner axis
    assert (sums["kind"], sums["axes"], sums["calls"]) == ("all-reduce", "tensor", 1)
    assert sums["bytes"] == 2 * (4 * ROWS * WIDTH / 4) / 2
    assert f"{found['bound']}-bound" in report.table(found, 2**30)


@pytest.mark.parametrize("limit", [2**20, 3 * 2**20], ids=["arguments", "temporaries"])
def test_what_does_not_fit_is_named(step, mesh, limit):
    """Weights of 2 MiB, rows of half a MiB: too large by themselves, or with temporaries."""
    found = measure(step, mesh, limit)
    assert not found["fits"] and found["peak"] > limit
    assert found["largest"][0] == [4 * WIDTH**2 // 2, "float32[1024, 512]", "argument [0]"]
    shown = report.table(found, limit)
    assert "DOES NOT FIT" in shown and "argument [0]" in shown


REFUSAL = """RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. \
Used 17.50G of 15.75G hbm. Exceeded hbm capacity by 1.75G.

Largest program allocations in hbm:

  1. Size: 2.50G
     Operator: op_name="jit(step)/dot_general"
     Shape: bf16[28,3584,18944]{2,1,0:T(8,128)(2,1)}
     Unpadded size: 2.50G

  2. Size: 512.0M
     Shape: f32[8]{0}
"""


def test_what_the_tpu_compiler_refuses():
    found = report._refused(REFUSAL, 0)
    assert found["peak"] == 17.5 * 2**30 and not found["fits"]
    assert found["largest"] == [
        [2.5 * 2**30, "bf16[28,3584,18944]", "jit(step)/dot_general"],
        [2**29, "f32[8]", ""],
    ]
    short = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    short += "temporaries (32.52G) exceeds available HBM (31.25G)."
    assert report._refused(short, 2**30) == {"fits": False, "peak": 33.52 * 2**30, "largest": []}
    with pytest.raises(RuntimeError, match="something else"):
        report._refused("INTERNAL: something else", 0)


def test_command_on_cpu(tmp_path):
    """The ranking step of a tiny model, from the command line; too large for a tiny memory."""

    def run(*arguments):
        command = [
            sys.executable, "launch/compile.py", "--config=configs/quickstart.py",
            "--topology=cpu:8", "--steps=rank", "--config.evaluation.batch_size=8",
            "--config.evaluation.length=128", "--config.evaluation.patches=32",
            "--config.model.tiny.layers=1", f"--out={tmp_path / 'plan.json'}", *arguments,
        ]  # fmt: skip
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )

    done = run("--hbm_gib=0.002", "--tries=1")
    assert done.returncode == 1, done.stderr
    assert "DOES NOT FIT" in done.stdout and "largest buffers" in done.stdout
    text = (tmp_path / "plan.json").read_text()
    assert text.startswith(report._BEGINS)  # so that the same command may write it again
    written = json.loads(text)
    assert written["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    rank = written["steps"]["rank"]
    assert rank["peak"] > 0.002 * 2**30 and rank["flops"] > 0 and rank["collectives"]
    (tried,) = rank["tried"]
    assert tried["fields"] == {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2}
    assert tried["compiled"] and 0 < tried["peak"] != rank["peak"]
    assert "--config.mesh.fsdp=4 --config.mesh.tensor=2" in done.stdout


@pytest.mark.parametrize(
    "name, slices, problem",
    [
        ("v5x:8x8", 1, "did you mean 'v5"),
        ("v5e", 1, "chips along each axis"),
        ("cpu:8", 2, "only TPUs have slices"),
        ("cpu:1024", 1, "JAX shows"),
    ],
)
def test_topologies_that_are_not(name, slices, problem):
    with pytest.raises(UserError, match=problem):
        topologies.describe(name, slices)


def test_links_of_a_torus():
    """v5e-64: lines that are open; a v5p cube: rings; between slices: the slow network."""

    class Device:
        def __init__(self, coords, slice_index=None):
            self.coords, self.slice_index = coords, slice_index

    def bandwidth(kind, shape, devices):
        chip = topologies.CHIPS[kind]
        return topologies.Topology("", chip, (), shape).bandwidth(np.array(devices))

    row = [Device((i, 0, 0)) for i in range(4)]
    plane = [Device((i, j, 0)) for i in range(4) for j in range(4)]
    assert bandwidth("v5e", (8, 8), row) == ("ici", 50e9)
    assert bandwidth("v5e", (4, 4), plane) == ("ici", 100e9)
    assert bandwidth("v5p", (4, 4, 4), row) == ("ici", 200e9)
    assert bandwidth("v5p", (2, 4, 4), row) == ("ici", 100e9)
    assert bandwidth("v5p", (4, 4, 4), plane) == ("ici", 400e9)
    assert bandwidth("v5e", (4, 4), [Device((0, 0, 0), i) for i in range(2)]) == ("dcn", 3.125e9)
    # Two devices a chip: they differ in no coordinate, and share the links of their chip.
    assert bandwidth("tpu7x", (4, 4, 4), [Device((0, 0, 0))] * 2) == ("ici", 600e9)
    assert bandwidth("tpu7x", (4, 4, 4), row) == ("ici", 100e9)
    assert bandwidth("tpu7x", (4, 4, 4), [each for each in row for _ in range(2)]) == ("ici", 200e9)
    assert bandwidth("tpu7x", (2, 2, 1), [Device((i, 0, 0)) for i in range(2)]) == ("ici", 50e9)


@dataclasses.dataclass(frozen=True)
class HalfChip:
    """A device of a TPU7x, as its compiler shows it."""

    coords: tuple[int, ...]
    core_on_chip: int
    platform = "tpu"
    device_kind = "TPU7x"
    slice_index = 0
    process_index = 0


@pytest.mark.parametrize("size", ["2x2x1", "2x4x4", "4x4x4"])
def test_every_axis_of_a_mesh_of_half_chips_has_a_network(size, monkeypatch):
    """A TPU7x from its name to the rings of a mesh; the compiler alone is a stand-in."""

    def described(platform, topology_name):
        assert (platform, topology_name) == ("tpu", f"tpu7x:{size}")
        chips = itertools.product(*(range(int(n)) for n in size.split("x")))
        devices = [HalfChip(coords, core) for coords in chips for core in (0, 1)]
        return types.SimpleNamespace(devices=devices)

    compiler = types.SimpleNamespace(get_topology_desc=described)
    monkeypatch.setattr(topologies, "topologies", compiler)
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: name == "libtpu")
    machine = topologies.describe(f"tpu7x:{size}")
    count = len(machine.devices)
    assert count == 2 * math.prod(machine.shape)
    inside = set()
    for sizes in ((count, 1, 1), (2, count // 2, 1), (2, count // 4, 2), (1, count // 8, 8)):
        devices = sharding.make_mesh(*sizes, devices=machine.devices).devices
        for axis in np.flatnonzero(np.array(sizes) > 1):
            for ring in np.moveaxis(devices, axis, -1).reshape(-1, sizes[axis]):
                network, rate = machine.bandwidth(ring)
                chips = {device.coords for device in ring}
                assert network == "ici" and 0 < rate <= machine.chip.inside
                if len(chips) == 1:
                    assert rate == machine.chip.inside
                    inside.add(sizes)
                else:  # a link of 100 GB/s, shared by two; two links along each of three axes
                    assert 50e9 <= rate <= 600e9
    assert inside  # an axis of some mesh lies in chips: no coordinate differs along it


@pytest.mark.parametrize("name", ["qwen2.5-vl-7b", "qwen3-vl-8b"])
@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)])
def test_published_models_have_no_large_replicated_leaf(name, sizes):
    """Shapes alone, of both trainings and of ranking; where there are several shards."""
    config, mesh = beauty.get_config(), sharding.make_mesh(*sizes)
    for kind in trainable.KINDS:
        config.sft.trainable = kind
        made = steps.Steps(from_config(Settings, config), presets.config(name), mesh)
        step = made.sft()
        state, frozen, batch = step.arguments
        large = report.replicated((state, frozen, batch), mesh)
        whole = report.held((state.params, frozen))
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((state.params, frozen)))
        if sizes == (8, 1, 1):  # replicas of the whole model, as asked for
            assert large and whole == size
        else:
            assert large == []
            assert whole < 1.3 * size / (sizes[1] * sizes[2])
        moments = report.held(step.kinds["optimizer"])
        assert moments == pytest.approx(2 * report.held(state.params), rel=1e-3)


@pytest.mark.parametrize(
    "variant, forms, changes, expected",
    [
        ("", ("joint",), {}, ["rollout", "grpo", "sft", "rank"]),
        ("", ("joint",), {"use.rewards": False}, ["sft", "rank"]),
        ("", ("joint",), {"use.sft": False}, ["rollout", "grpo", "rank"]),
        ("cached", ("cached",), {}, ["cached", "catalog"]),
        (
            "mllm_srec", ("joint", "cached"), {},
            ["visual_answers", "item_texts", "preferences", "sft", "rank", "cached", "catalog"],
        ),
        (
            "mllm_srec", ("joint",), {"understanding.mode": "both", "writer.pretrained": True},
            ["item_texts", "writer", "preferences", "sft", "rank"],
        ),
    ],
)  # fmt: skip
def test_steps_of_a_method(variant, forms, changes, expected):
    config = beauty.get_config(variant)
    with config.unlocked():
        config.forms = forms
        config.update_from_flattened_dict(changes)
        config.planning.model = "qwen2.5-vl-7b"
    assert planned.names(from_config(Settings, config)) == expected


def test_a_sequential_recommender_has_no_step_to_compile():
    with pytest.raises(UserError, match="alone has no step"):
        planned.names(from_config(Settings, beauty.get_config("sasrec")))


def model_of(config):
    return planned.model_config(from_config(Settings, config))


def test_model_of_a_config(tmp_path):
    config = beauty.get_config()
    assert model_of(config).text.hidden == 3584
    config.model.path = "qwen2.5-vl-3b"
    small = model_of(config)
    golden = (ROOT / "tests/golden/qwen2_5_vl_3b_config.json").read_text()
    (tmp_path / "config.json").write_text(golden)
    config.model.path = str(tmp_path)
    assert model_of(config) == small and small.text.layers == 36
    scratch = quickstart.get_config()
    assert model_of(scratch).text.hidden == scratch.model.tiny.hidden
    config.model.path = "qwen9"
    with pytest.raises(UserError, match="no folder with a config.json"):
        model_of(config)
