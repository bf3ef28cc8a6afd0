"""Devices of absent machines, as programs are compiled for them."""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from mmsrec_jax.runtime.chips import CHIPS, Chip
from mmsrec_jax.runtime.config_utils import choose_name
from mmsrec_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices of one or several equal slices; shape: chips along each axis of one."""

    name: str
    chip: Chip
    devices: Sequence[Any]
    shape: tuple[int, ...]

    def bandwidth(self, devices: np.ndarray) -> tuple[str, float]:
        """Network ("ici" or "dcn") that a ring over these devices uses, and bytes per second that
        each of them can send on it: over all links along the axes in which they differ.

        Of several devices on a chip, those that are all in the ring send to each other inside of
        the chip, and one sends for them; those of other rings send at the same time and share the
        links.
        """
        if len({getattr(device, "slice_index", None) for device in devices.flat}) > 1:
            return "dcn", self.chip.dcn
        if self.chip.wraps is None:  # a switch
            return "ici", self.chip.link
        coords = np.array([device.coords for device in devices.flat])
        links = 0
        for axis, size in zip(coords.T, self.shape, strict=False):
            if len(set(axis)) > 1:
                # In a line, unlike in a ring, everything passes over one link in each direction.
                closed = len(set(axis)) == size and self._closed(size, self.chip.wraps)
                links += 2 if closed else 1
        on_a_chip = devices.size / len(np.unique(coords, axis=0))
        if not links:
            return "ici", self.chip.inside
        shared = links * self.chip.link * on_a_chip / self.chip.devices
        return "ici", min(shared, self.chip.inside) if on_a_chip > 1 else shared

    def _closed(self, size: int, wraps: int) -> bool:
        if wraps == 4 and min(self.shape) < 4:
            return False  # less than a cube
        return size % wraps == 0


def describe(name: str, slices: int = 1) -> Topology:
    """`v5e:8x8` (v4, v5e, v5p, v6e, tpu7x; in chips), `h100:1x1x8` (GPUs along the last axis) or
    `cpu:8`.

    Raises:
      UserError: an unknown name, or the compiler for it is not installed.
    """
    kind, _, size = name.partition(":")
    choose_name(kind, CHIPS, what="--topology")
    if not re.fullmatch(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4}){0,2}", size):
        raise UserError(f"--topology={name}: write {kind} and the chips along each axis, {_HINT}")
    if kind in ("cpu", "h100") and slices > 1:
        raise UserError(f"--slices={slices}: only TPUs have slices")
    shape = tuple(map(int, size.split("x")))
    if math.prod(shape) > (most := _MOST_ON_CPU if kind == "cpu" else _MOST_CHIPS):
        raise UserError(f"--topology={name}: {math.prod(shape):,} devices; at most {most:,}")
    make = {"cpu": _cpu, "h100": _h100}.get(kind, _tpu)
    try:
        devices = make(kind, size, slices)
    except UserError:
        raise
    except Exception as error:  # what compilers raise of a name they do not know
        reason = str(error).splitlines()[0]
        if make is _tpu:
            version = importlib.metadata.version("libtpu")
            reason += f" (libtpu {version}; a newer one may know it)"
        raise UserError(f"--topology={name}: {reason}; {_HINT}") from error
    return Topology(name, CHIPS[kind], devices, shape)


_MOST_CHIPS = 16_384  # above the largest slice there is
_MOST_ON_CPU = 1024  # each has threads of its own
_HINT = "for example v5e:8x8, v5p:4x4x4, v6e:8x8, tpu7x:4x4x4, h100:1x1x8 or cpu:8"


def _tpu(kind: str, size: str, slices: int) -> Sequence[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"the compiler for TPUs is not installed: pip install 'jax[tpu]=={jax.__version__}' "
            "(it needs no TPU)"
        )
    # Without these libtpu asks the network which TPU this machine is.
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is run: several compilers may be at work
    }.items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # one device a chip
    name = f"{kind}:{size}"
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices


def _h100(kind: str, size: str, slices: int) -> Sequence[Any]:
    del kind, slices
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        raise UserError(
            f"the compiler for GPUs is not installed: pip install --no-deps jax-cuda13-plugin=="
            f"{jax.__version__} jax-cuda13-pjrt=={jax.__version__} (it needs no GPU)"
        )
    target = resources.files(__package__).joinpath("h100_target_config.txt").read_text()
    return topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=target, topology=size
    ).devices


def _cpu(kind: str, size: str, slices: int) -> Sequence[Any]:
    del kind, slices
    count = math.prod(int(n) for n in size.split("x"))
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX has its devices already
            jax.config.update("jax_num_cpu_devices", count)
    simulated = jax.devices("cpu")
    if len(simulated) < count:
        raise UserError(
            f"--topology=cpu:{size}: JAX shows {len(simulated)} CPU devices; set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return simulated[:count]
