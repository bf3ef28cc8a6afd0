"""What XLA is told in tests: how many devices a process has, and to compile fast.

The kernels of XLA's newer emitters take five times as long to compile, and tests run a program a
few times. A jaxlib that has no others does not know the flag and would end the process.
"""

from importlib.metadata import version

_FAST_TO_COMPILE = "--xla_cpu_use_fusion_emitters=false"
_KNOWS_IT = version("jaxlib").startswith("0.10.")


def of_devices(count: int) -> str:
    """The value of XLA_FLAGS for a process with so many simulated CPU devices."""
    devices = f"--xla_force_host_platform_device_count={count}"
    return f"{devices} {_FAST_TO_COMPILE}" if _KNOWS_IT else devices
