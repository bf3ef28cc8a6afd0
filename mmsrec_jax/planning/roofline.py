"""The least time that a step can take on a machine, and what sets it.

Three times that overlap at best, so that the longest is the bound (Williams et al. 2009):
arithmetic at the peak rate, HBM traffic at its bandwidth, and the network, where each collective is
a ring (or rings along several axes of a torus) at the bandwidth of its links. Latency and
contention are not modeled.
"""

import dataclasses
from collections import defaultdict

import numpy as np
from jax.sharding import Mesh

from mmsrec_jax.planning.hlo import Collective, Program
from mmsrec_jax.planning.topologies import Topology


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind along the same mesh axes.

    calls: in a step. bytes: each device sends, in a step. network: "ici" or "dcn".
    largest: bytes of the largest array, and what the program calls it.
    """

    kind: str
    axes: str
    network: str
    calls: int
    bytes: float
    seconds: float
    largest: tuple[int, str]


def traffic(program: Program, topology: Topology, mesh: Mesh) -> list[Traffic]:
    """Collectives by kind and mesh axes, the slowest first."""
    by_key = defaultdict(list)
    for collective in program.collectives(mesh.size, _across_slices(mesh)):
        devices = mesh.devices.flatten()[collective.groups[0]]
        network, bandwidth = topology.bandwidth(devices)
        key = collective.kind, axes_of(collective, mesh), network
        by_key[key].append((collective, bandwidth))
    found = [
        Traffic(
            *key,
            calls=sum(c.times for c, _ in members),
            bytes=sum(c.times * c.wire for c, _ in members),
            seconds=sum(c.times * c.wire / bandwidth for c, bandwidth in members),
            largest=max((c.bytes, c.source) for c, _ in members),
        )
        for key, members in by_key.items()
    ]
    return sorted(found, key=lambda t: -t.seconds)


def _across_slices(mesh: Mesh) -> np.ndarray | None:
    """int[groups, slices]: positions of the devices that are alike in every slice."""
    slices = np.array([getattr(device, "slice_index", 0) for device in mesh.devices.flat])
    found = np.unique(slices)
    if len(found) == 1:
        return None
    return np.stack([np.flatnonzero(slices == each) for each in found], axis=1)


def axes_of(collective: Collective, mesh: Mesh) -> str:
    """The mesh axes along which a group of devices differs, joined by +."""
    places = np.unravel_index(collective.groups[0], mesh.devices.shape)
    moved = [name for name, at in zip(mesh.axis_names, places, strict=True) if len(set(at)) > 1]
    return "+".join(moved)


def times(
    flops: float, hbm_bytes: float, collectives: list[Traffic], topology: Topology
) -> dict[str, float]:
    """Seconds on one device of compute, memory, ici and dcn; flops and bytes are of one device."""
    chip = topology.chip
    network = {"ici": 0.0, "dcn": 0.0}
    for each in collectives:
        network[each.network] += each.seconds
    return {"compute": flops / chip.flops, "memory": hbm_bytes / chip.hbm_bandwidth, **network}
