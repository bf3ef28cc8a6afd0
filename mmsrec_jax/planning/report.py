"""Compiles steps, and says what they need: as a table for people and as JSON."""

import dataclasses
import itertools
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from mmsrec_jax.planning import faster, item_store, remedy, roofline
from mmsrec_jax.planning.hlo import Program
from mmsrec_jax.planning.planned import Planned, model_config, model_name, names
from mmsrec_jax.planning.steps import STEPS, Step, Steps
from mmsrec_jax.planning.topologies import Topology, describe
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.chips import GIB
from mmsrec_jax.runtime.config_utils import choose_name
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.files import check_replaces, write_text
from mmsrec_jax.runtime.settings import as_dict

_LARGEST = 8
_BEGINS = '{\n "topology": '


def run(
    config: Planned,
    *,
    topology: str,
    slices: int = 1,
    steps: Sequence[str] = (),
    hbm_gib: float | None = None,
    quick: bool = False,
    tries: int = 0,
    out: Path | None = None,
) -> bool:
    """Compiles `steps` of `config`, prints what each needs, and writes it to `out`.

    Args:
      topology, slices: see `topologies.describe`.
      steps: names in `STEPS`; none is what `names` gives for `config`.
      hbm_gib: memory of a device to be kept within, by default the chip's.
      quick: compile with the least optimization, which training does not.
      tries: for a step that does not fit, changes that are compiled at most to find one that does;
        and as many to find one by which a step that fits is faster (`faster`).

    Returns:
      Whether every step fits.
    """
    if out is not None:
        check_replaces(out, _BEGINS, "report")
    if config.method == "both":
        raise UserError(
            "config.method='both': compile each method by a config of its own, such as "
            "configs/beauty.py and configs/beauty.py:mllm_srec"
        )
    steps = steps or names(config)
    for name in steps:
        choose_name(name, STEPS, what="--steps")
    machine = describe(topology, slices)
    mesh = sharding.make_mesh(**as_dict(config.mesh), devices=machine.devices)
    made = Steps(config, model_config(config), mesh)
    jax.config.update("jax_optimization_level", "O0" if quick else "UNKNOWN")
    limit = hbm_gib * GIB if hbm_gib else machine.chip.hbm
    report: dict[str, Any] = {
        "topology": topology,
        "slices": slices,
        "mesh": dict(mesh.shape),
        "model": model_name(config),
        "jax": jax.__version__,
        "quick": quick,
        "hbm": limit,
        "steps": {},
    }
    print(
        f"{machine.name}{f' x {slices} slices' if slices > 1 else ''}: {mesh.size} x "
        f"{mesh.devices.flat[0].device_kind}, mesh "
        + ", ".join(f"{name}={size}" for name, size in mesh.shape.items()),
        flush=True,
    )
    for name in steps:
        step = STEPS[name](made)
        found = measure(step, machine, mesh, limit)
        report["steps"][name] = found
        print("\n" + table(found, limit), flush=True)
        if found["fits"] and tries:
            _say_faster(step, config, found, machine, limit, mesh, quick=quick, tries=tries)
        if not found["fits"]:
            tried = _remedies(name, config, found, machine, limit, mesh, tries)
            found["tried"] = [dataclasses.asdict(each) for each in tried]
            print(remedy.paragraph(name, found, limit, tried, quick=quick), flush=True)
        if name == "catalog":
            text, dtype = made.shape.text, config.model.dtype
            free = limit - (found["peak"] - found["memory"]["item store"])
            store = item_store.measure(text, config.cached.item_length, dtype, mesh, free)
            report["item_store"] = store
            print(item_store.table(text, store, dtype), flush=True)
        if out is not None:
            write_text(out, json.dumps(report, indent=1) + "\n")
    return all(found["fits"] for found in report["steps"].values())


def _say_faster(
    step: Step,
    config: Planned,
    found: dict[str, Any],
    machine: Topology,
    limit: float,
    mesh: Mesh,
    *,
    quick: bool,
    tries: int,
) -> None:
    """Prints, and adds to `found`, the change by which the step is faster, if there is one."""

    def measured(fields: remedy.Fields) -> dict[str, Any]:
        return _measured(step.name, remedy.changed(config, fields), machine, limit)[1]

    changes = itertools.islice(faster.gathered_once(step, config, found, mesh, limit), tries)
    if best := faster.find(found, changes, measured):
        fields, changed = best
        found["faster"] = {"fields": dict(fields), **changed}
        print(faster.paragraph(found, fields, changed, quick=quick), flush=True)


def _remedies(
    name: str,
    config: Planned,
    found: dict[str, Any],
    machine: Topology,
    limit: float,
    mesh: Mesh,
    tries: int,
) -> list[remedy.Tried]:
    """Changes of `config` that were compiled to make the step fit, see `remedy.find`."""

    def measured(changed: Planned) -> tuple[dict[str, int], dict[str, Any]]:
        return _measured(name, changed, machine, limit)

    return remedy.find(name, config, found, measured, dict(mesh.shape), tries=tries)


def _measured(
    name: str, config: Planned, machine: Topology, limit: float
) -> tuple[dict[str, int], dict[str, Any]]:
    """Sizes of the mesh of `config`, and what its step needs."""
    mesh = sharding.make_mesh(**as_dict(config.mesh), devices=machine.devices)
    made = Steps(config, model_config(config), mesh)
    return dict(mesh.shape), measure(STEPS[name](made), machine, mesh, limit)


def measure(step: Step, topology: Topology, mesh: Mesh, limit: float) -> dict[str, Any]:
    """Everything about one step that its program says; bytes and FLOPs are of one device.

    `limit`: bytes of a device's memory.
    """
    logging.info("%s: compiling", step.name)
    start = time.monotonic()
    found: dict[str, Any] = {
        "step": step.name,
        "flops": (step.required + step.repeated) / mesh.size,
        "flops_repeated": step.repeated / mesh.size,
        "memory": {kind: held(tree) for kind, tree in step.kinds.items()},
        "host_memory": sum(held(tree, on_host=True) for tree in step.kinds.values()),
        "replicated": replicated(step.arguments, mesh),
    }
    held_there = sum(found["memory"].values())
    if held_there > limit:  # no need to ask a compiler
        largest = [list(row) for row in largest_arguments(step)]
        return found | {
            "fits": False, "peak": held_there, "largest": largest, "compile_seconds": 0.0,
        }  # fmt: skip
    compiled = None
    try:
        with jax.set_mesh(mesh):
            compiled = step.function.lower(*step.static, *step.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        found |= _refused(str(error), held_there)
    found["compile_seconds"] = time.monotonic() - start
    if compiled is None:
        found["largest"] = found["largest"] or [list(row) for row in largest_arguments(step)]
        return found
    program = Program(compiled.as_text())
    collectives = roofline.traffic(program, topology, mesh)
    moved = program.hbm_bytes()
    peak = peak_bytes(compiled.memory_analysis())
    found["memory"]["activations and temporaries"] = peak - sum(found["memory"].values())
    found |= {
        "fits": peak <= limit,
        "peak": peak,
        "hbm_bytes": moved,
        "collectives": [dataclasses.asdict(each) for each in collectives],
        "seconds": roofline.times(found["flops"], moved, collectives, topology),
        "largest": [list(row) for row in largest_arguments(step)]
        + [list(row) for row in program.largest(_LARGEST)],
    }
    found["largest"] = sorted(found["largest"], key=lambda row: -row[0])[:_LARGEST]
    found["bound"] = max(found["seconds"], key=found["seconds"].get)
    return found


def peak_bytes(memory: Any) -> int:
    """What a device sets aside for a program: arguments, results, temporaries and the code. Of
    `memory_analysis()`, whose own peak leaves out what lies between the buffers."""
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


def held(tree: Any, *, on_host: bool = False) -> int:
    """Bytes of one device's shards of abstract arrays in its own memory, or in its host's."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
        if (x.sharding.memory_kind == "pinned_host") == on_host
    )


def replicated(tree: Any, mesh: Mesh, at_least: int = 2**20) -> list[str]:
    """Arrays of at least so many bytes of which every device of `mesh` holds all."""
    if mesh.size == 1:
        return []
    return [
        f"{jax.tree_util.keystr(path)} {x.dtype}{list(x.shape)}"
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
        if x.sharding.is_fully_replicated and x.size * x.dtype.itemsize >= at_least
    ]


def largest_arguments(step: Step) -> list[tuple[int, str, str]]:
    """(bytes of a shard, shape of the shard, path) of the largest arguments."""
    rows = []
    for path, x in jax.tree_util.tree_leaves_with_path(step.arguments):
        shard = x.sharding.shard_shape(x.shape)
        size = int(np.prod(shard)) * x.dtype.itemsize
        rows.append((size, f"{x.dtype}{list(shard)}", "argument " + jax.tree_util.keystr(path)))
    return sorted(rows, reverse=True)[:_LARGEST]


def _refused(error: str, held: float) -> dict[str, Any]:
    """What a compiler says of a program that needs more memory than there is. One that names its
    temporaries alone leaves out the `held` bytes of arguments."""
    used = re.search(r"Used ([\d.]+)([KMG]) of|temporaries \(([\d.]+)([KMG])\) exceeds", error)
    if used is None:
        raise RuntimeError(error)
    largest = []
    for size, unit, rest in re.findall(r"Size: ([\d.]+)([KMG])(.*?)(?=\n\s*\n|\Z)", error, re.S):
        shape = re.search(r"Shape: (\S+?)\{", rest)
        name = re.search(r'op_name="([^"]*)"', rest)
        largest.append(
            [float(size) * _UNITS[unit], shape[1] if shape else "", name[1] if name else ""]
        )
    if used[1]:
        peak = float(used[1]) * _UNITS[used[2]]
    else:
        peak = float(used[3]) * _UNITS[used[4]] + held
    return {"fits": False, "peak": peak, "largest": largest[:_LARGEST]}


_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def table(found: dict[str, Any], limit: float) -> str:
    """Lines about one step of `measure`."""
    lines = [
        f"{found['step']}: {'fits' if found['fits'] else 'DOES NOT FIT'}, "
        f"{_size(found['peak'])} of {_size(limit)} HBM a device, "
        f"compiled in {found['compile_seconds']:.0f} s"
    ]
    lines += [f"  {kind:<28} {_size(size):>11}" for kind, size in found["memory"].items()]
    if found["host_memory"]:
        lines.append(f"  {'host, moved to and fro':<28} {_size(found['host_memory']):>11}")
    lines += [f"  replicated on every device: {each}" for each in found["replicated"]]
    if not found["fits"]:
        lines.append("  largest buffers:")
        lines += [f"    {_size(size):>11} {what} {name}" for size, what, name in found["largest"]]
    if "seconds" not in found:
        return "\n".join(lines)
    again = found["flops_repeated"] / found["flops"]
    lines.append(
        f"  {found['flops'] / 1e12:.1f} TFLOP a device ({again:.0%} of it repeated), "
        f"{_size(found['hbm_bytes'])} through HBM"
    )
    for each in found["collectives"]:
        size, name = each["largest"]
        lines.append(
            f"  {each['kind']:<18} {each['axes']:<12} {each['network']} {each['calls']:5d} x, "
            f"{_size(each['bytes']):>11} sent, {1e3 * each['seconds']:8.1f} ms "
            f"(largest {_size(size)}, {name})"
        )
    seconds = ", ".join(f"{name} {1e3 * s:.1f}" for name, s in found["seconds"].items())
    longest = found["seconds"][found["bound"]]
    lines.append(
        f"  roofline: {1e3 * longest:.1f} ms a step, {found['bound']}-bound "
        f"({seconds} ms); at best {utilization(found):.0%} MFU"
    )
    return "\n".join(lines)


def _size(count: float) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.2f} MiB"


def utilization(found: dict[str, Any]) -> float:
    """MFU that the roofline allows: what is computed again is time but no useful work."""
    useful = 1 - found["flops_repeated"] / found["flops"]
    return useful * found["seconds"]["compute"] / found["seconds"][found["bound"]]
