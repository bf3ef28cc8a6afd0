"""The cheapest change by which a step fits that does not: candidate changes are compiled too.

They are tried in the order of what they cost. When none is enough by itself, the one that saved the
most is kept and all are tried beside it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from mmsrec_jax.planning.planned import Planned
from mmsrec_jax.runtime.chips import GIB
from mmsrec_jax.runtime.sharding import MESH_AXES

SECTIONS = {
    "sft": "sft", "grpo": "summarizer", "rollout": "summarizer", "rank": "evaluation",
    "cached": "cached", "catalog": "cached", "visual_answers": "understanding",
    "item_texts": "understanding", "writer": "writer", "preferences": "preferences",
}  # fmt: skip
"""Step -> the section of the settings that says how large it is."""

_TRAINS = ("sft", "grpo", "cached", "writer")
WRITES = ("rollout", "visual_answers", "item_texts", "preferences")

Fields = Mapping[str, Any]  # "sft.micro_batch" -> value
P = TypeVar("P", bound=Planned)


@dataclasses.dataclass(frozen=True)
class Change:
    """Fields of a config, and what they cost in words."""

    fields: Fields
    cost: str


@dataclasses.dataclass(frozen=True)
class Tried:
    """What a change led to; fields: of the change and of those kept before it.

    peak: bytes of a device; compiled: False: its arguments alone do not fit.
    """

    fields: Fields
    cost: str
    peak: float
    fits: bool
    compiled: bool


def candidates(step: str, config: Planned, mesh: Mapping[str, int]) -> Iterator[Change]:
    """Changes of `config` that may save memory in `step`, those that cost least first.

    mesh: sizes by axis.
    """
    name = SECTIONS[step]
    section: Any = getattr(config, name)
    if step in _TRAINS and config.model.remat != "full":
        yield Change({"model.remat": "full"}, "the layers are computed twice")
    if (part := _smaller_part(step, section, mesh)) is not None:
        yield Change({f"{name}.micro_batch": part}, "the same update in twice as many passes")
    if step not in _TRAINS and step not in ("rollout", "catalog"):
        yield from _halved(name, section, ("batch_size",), mesh, "twice as many batches")
    if step == "catalog":
        sizes = ("score_items", "score_users")
        yield from _halved(name, section, sizes, mesh, "twice as many parts of the scores")
    if mesh["data"] > 1:
        fields = mesh_fields(mesh, data=1, fsdp=mesh["data"] * mesh["fsdp"])
        yield Change(fields, "no replicas: weights are gathered from more devices")
    if step in WRITES and section.gather_weights:
        cost = "weights are gathered again for every token"
        yield Change({f"{name}.gather_weights": False}, cost)
    if mesh["fsdp"] % 2 == 0:
        fields = mesh_fields(mesh, fsdp=mesh["fsdp"] // 2, tensor=mesh["tensor"] * 2)
        yield Change(fields, "the parts of every product are summed over the network")
    if step in _TRAINS and not getattr(section, "offload_optimizer", True):
        if section.trainable == "full":  # adapters have few moments
            cost = "moments move between host and device in every step"
            yield Change({f"{name}.offload_optimizer": True}, cost)
    patches = "item_patches" if name == "cached" else "patches"
    if config.use.images and getattr(section, patches, 0) > 1 and step != "catalog":
        cost = "fewer or smaller images a row, see config.model.max_pixels"
        yield Change({f"{name}.{patches}": getattr(section, patches) // 2}, cost)
    if step in ("sft", "grpo", "rollout", "writer"):
        yield from _halved(name, section, ("batch_size",), mesh, "an update learns from half")
    if step == "cached":
        cost = "an update learns from fewer pairs"
        if section.num_items // 2 >= section.num_users:  # each user has an item of its own
            yield from _halved(name, section, ("num_items",), mesh, cost)
        yield from _halved(name, section, ("num_users",), mesh, cost)
    if step in _TRAINS and getattr(section, "trainable", "lora") == "full":
        yield Change({f"{name}.trainable": "lora"}, "adapters alone are trained")


def changed(config: P, fields: Fields) -> P:
    """`config` with other values of fields such as "sft.micro_batch"."""
    found: Any = config
    for name, value in fields.items():
        section, field = name.split(".")
        part = dataclasses.replace(getattr(found, section), **{field: value})
        found = dataclasses.replace(found, **{section: part})
    return found


def find(
    step: str,
    config: P,
    found: Mapping[str, Any],
    measure: Callable[[P], tuple[Mapping[str, int], Mapping[str, Any]]],
    mesh: Mapping[str, int],
    *,
    tries: int,
) -> list[Tried]:
    """What was tried; the last one fits if any does.

    Args:
      found: of the step with `config`, see `report.measure`.
      measure: config -> sizes of its mesh, what its step needs.
      tries: programs that are compiled at most.
    """
    tried: list[Tried] = []
    kept: dict[str, Any] = {}
    cost, peak = "", found["peak"]
    while True:
        best: tuple[Tried, Mapping[str, int]] | None = None
        for change in candidates(step, changed(config, kept), mesh):
            if sum(each.compiled for each in tried) >= tries:
                return tried
            fields = {**kept, **change.fields}
            sizes, result = measure(changed(config, fields))
            compiled = result["compile_seconds"] > 0
            costs = f"{cost}; {change.cost}" if cost else change.cost
            tried.append(Tried(fields, costs, result["peak"], result["fits"], compiled))
            if result["fits"]:
                return tried
            if result["peak"] < (best[0].peak if best else peak):
                best = tried[-1], sizes
        if best is None:
            return tried
        kept, cost, peak, mesh = dict(best[0].fields), best[0].cost, best[0].peak, best[1]


def paragraph(
    step: str, found: Mapping[str, Any], limit: float, tried: list[Tried], *, quick: bool
) -> str:
    """Why a step does not fit, and what was found.

    limit: bytes of a device.
    """
    size, what, name = found["largest"][0]
    said = [
        f"{step} needs {found['peak'] / GIB:.2f} GiB on a device that has {limit / GIB:.2f} GiB; "
        f"its largest buffer is {what} with {size / GIB:.2f} GiB ({name or 'unnamed'})."
    ]
    how = "each compiled for this machine" + (" with --quick" if quick else "")
    if any(not each.compiled for each in tried):
        how += ", or refused for its arguments alone"
    fitting = [each for each in tried if each.fits]
    failed = [f"{flags(each.fields)} ({each.peak / GIB:.2f})" for each in tried if not each.fits]
    if fitting:
        each = fitting[-1]
        said.append(
            f"The cheapest change that fits, {how}: {flags(each.fields)}, with "
            f"{each.peak / GIB:.2f} GiB; what it costs: {each.cost}."
        )
    elif tried:
        said.append(
            f"None of {len(tried)} changes fits, {how}; take more devices, or devices with more "
            "memory, or a smaller model."
        )
    if failed:
        said.append("Not enough (GiB): " + ", ".join(failed) + ".")
    return " ".join(said)


def flags(fields: Fields) -> str:
    """As the command line takes them."""
    return " ".join(f"--config.{name}={value}" for name, value in fields.items())


def mesh_fields(mesh: Mapping[str, int], **sizes: int) -> Fields:
    """The mesh, with other sizes of some axes, as fields of a config."""
    return {f"mesh.{axis}": (dict(mesh) | sizes)[axis] for axis in MESH_AXES}


def _smaller_part(step: str, section: Any, mesh: Mapping[str, int]) -> int | None:
    """`micro_batch` halved, where that divides the batch and the devices divide it."""
    if not hasattr(section, "micro_batch") or step == "rollout":
        return None
    each = section.num_generations if step == "grpo" else 1
    part = (section.micro_batch or section.batch_size) // 2
    whole, unit = section.batch_size * each, each * mesh["data"] * mesh["fsdp"]
    return part if part and part % unit == 0 and whole % part == 0 else None


def _halved(
    name: str, section: Any, fields: tuple[str, ...], mesh: Mapping[str, int], cost: str
) -> Iterator[Change]:
    for field in fields:
        half = getattr(section, field) // 2
        part = getattr(section, "micro_batch", 0) or 1
        per = getattr(section, "num_generations", 1)
        if half and half % (mesh["data"] * mesh["fsdp"]) == 0 and half * per % part == 0:
            yield Change({f"{name}.{field}": half}, cost)
