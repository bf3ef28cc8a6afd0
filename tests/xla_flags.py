"""What XLA is told in tests: how many devices a process has, and to compile fast.

The kernels of XLA's newer emitters run faster and take five times as long to compile, and tests run
a program a few times.
"""

FAST_TO_COMPILE = "--xla_cpu_use_fusion_emitters=false"


def of_devices(count: int) -> str:
    """The value of XLA_FLAGS for a process with so many simulated CPU devices."""
    return f"--xla_force_host_platform_device_count={count} {FAST_TO_COMPILE}"
