"""What makes a step that fits faster, where its program shows it: weights gathered once."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from mmsrec_jax.planning.planned import Planned
from mmsrec_jax.planning.remedy import SECTIONS, WRITES, Fields, flags, mesh_fields
from mmsrec_jax.planning.steps import Step
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.chips import GIB
from mmsrec_jax.runtime.errors import UserError

_ALONE = "The steps of a run may have different meshes (docs/pods.md)."
_SHARED = {"rollout": "Step summarizer has one mesh for this and for grpo: compile both with it."}


def gathered_once(
    step: Step, config: Planned, found: Mapping[str, Any], mesh: Mesh, limit: float
) -> Iterator[Fields]:
    """Changes by which a step that writes gathers its weights once a batch, and not for every
    token; none where the network is not what it waits for.

    The meshes have as many replicas and more and more tensor shards: those with room for the
    decoder beside what the step needs now, of `limit` bytes on a device.
    """
    name = SECTIONS[step.name]
    if step.name not in WRITES or getattr(config, name).gather_weights:
        return
    if not _waits_for_weights(found):
        return
    sizes = dict(mesh.shape)
    while sizes["fsdp"] > 1:
        whole = _gathered(step, sizes, mesh)
        if whole is not None and found["peak"] + whole <= limit:
            kept = {} if sizes == dict(mesh.shape) else mesh_fields(sizes)
            yield {**kept, f"{name}.gather_weights": True}
        if sizes["fsdp"] % 2:
            return
        sizes |= {"fsdp": sizes["fsdp"] // 2, "tensor": sizes["tensor"] * 2}


def find(
    found: Mapping[str, Any],
    changes: Iterable[Fields],
    measure: Callable[[Fields], Mapping[str, Any]],
) -> tuple[Fields, Mapping[str, Any]] | None:
    """The fastest change, and what the step needs with it; the first that is slower than the one
    before it is the last that is compiled. None: none fits and is faster than `found`."""
    best: tuple[Fields, Mapping[str, Any]] | None = None
    shortest = _seconds(found)
    for fields in changes:
        changed = measure(fields)
        if not changed["fits"]:
            continue
        if _seconds(changed) >= shortest:
            break
        best, shortest = (fields, changed), _seconds(changed)
    return best


def _waits_for_weights(found: Mapping[str, Any]) -> bool:
    """Whether the step's longest time is the network's, and most of that goes to gathering what
    fsdp divides."""
    if found["bound"] not in ("ici", "dcn"):
        return False
    gathered = sum(
        each["seconds"]
        for each in found["collectives"]
        if each["kind"] == "all-gather" and "fsdp" in each["axes"].split("+")
    )
    return gathered > _seconds(found) / 2


def _seconds(found: Mapping[str, Any]) -> float:
    return found["seconds"][found["bound"]]


def _gathered(step: Step, sizes: Mapping[str, int], mesh: Mesh) -> float | None:
    """Bytes of the decoder on a device whose mesh has these sizes, not divided by FSDP; None where
    they do not divide it, or the devices cannot be arranged so."""
    count = 0
    try:
        other = sharding.make_mesh(**sizes, devices=list(mesh.devices.flat))
    except UserError:
        return None
    for state in step.kinds["parameters"]:
        if state is None:
            continue
        decoder = nnx.filter_state(state, nnx.PathContains("text"))
        try:
            where = sharding.shardings(decoder, other, without="fsdp")
        except UserError:
            return None
        for x, placed in zip(jax.tree.leaves(decoder), jax.tree.leaves(where), strict=True):
            part = jax.ShapeDtypeStruct(placed.shard_shape(x.shape), x.dtype)
            count += part.size * part.dtype.itemsize
    return count


def paragraph(
    found: Mapping[str, Any], fields: Fields, changed: Mapping[str, Any], *, quick: bool
) -> str:
    """What the change does; changed: what the step needs with it."""
    how = "compiled for this machine" + (" with --quick" if quick else "")
    return (
        f"{found['step']} waits for the network: the weights that fsdp divides are gathered again "
        f"for every token. Once a batch, {how}: {flags(fields)}, with "
        f"{changed['peak'] / GIB:.2f} GiB and {1e3 * _seconds(changed):.0f} ms in place of "
        f"{1e3 * _seconds(found):.0f}. {_SHARED.get(found['step'], _ALONE)}"
    )
