"""What the devices of chips can do, from their makers' data sheets."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one device can do, per second where it is a rate. A chip is one device, but for those
    with `devices`.

    flops: bfloat16 peak.
    hbm: bytes that programs can use; hbm_bandwidth: bytes.
    link: bytes in one direction of one inter-chip link; a torus has two links along each axis, a
      switched network (`wraps` is None) one.
    dcn: bytes in one direction between slices.
    wraps: an axis of the torus is closed when its length is a multiple of this.
    devices: of a chip, which share its links; inside: bytes in one direction between two of them.
    """

    flops: float
    hbm: float
    hbm_bandwidth: float
    link: float
    dcn: float
    wraps: int | None
    devices: int = 1
    inside: float = 0.0


# TPUs: "System architecture" of docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}: peak compute, HBM
# bandwidth, bidirectional ICI bandwidth over twice the links (4 or 6), data center bandwidth. HBM
# is what their compilers leave to programs. v5e and v6e close the torus only at 16 chips, v4 and
# v5p from a cube of 4 x 4 x 4 on.
# TPU7x: docs.cloud.google.com/tpu/docs/tpu7x, "System architecture": of a chip 2307 TFLOP/s, 7380
# GB/s of HBM, 1200 GB/s of ICI in both directions over 6 links, 100 Gb/s of data center network; a
# chip is two devices with half of each. "Dual-chiplet architecture": these are connected six times
# as fast as by one link.
# H100 SXM: NVIDIA's data sheet: 989 TFLOP/s dense, 80 GB, 3.35 TB/s, NVLink 450 GB/s a direction;
# 50 GB/s a GPU of 400 Gb/s InfiniBand.
CHIPS = {
    "v4": Chip(275e12, 30.75 * GIB, 1228e9, 50e9, 6.25e9, wraps=4),
    "v5e": Chip(197e12, 15.75 * GIB, 819e9, 50e9, 3.125e9, wraps=16),
    "v5p": Chip(459e12, 95.74 * GIB, 2765e9, 100e9, 6.25e9, wraps=4),
    "v6e": Chip(918e12, 31.25 * GIB, 1638e9, 100e9, 12.5e9, wraps=16),
    "tpu7x": Chip(1153.5e12, 94.75 * GIB, 3690e9, 100e9, 6.25e9, wraps=4, devices=2, inside=600e9),
    "h100": Chip(989e12, 84942979072, 3350e9, 450e9, 50e9, wraps=None),
    # No machine in particular: for looking at programs where nothing but JAX is installed.
    "cpu": Chip(1e12, 16 * GIB, 100e9, 10e9, 1e9, wraps=None),
}
