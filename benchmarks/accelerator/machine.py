"""What the numbers were measured with."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("jax", "jaxlib", "torch", "transformers", "flax", "triton")


def environment() -> dict[str, str | int | float]:
    """Device, driver, versions and commit; `platform` is JAX's: cpu, gpu or tpu."""
    import jax

    device = jax.devices()[0]
    found: dict[str, str | int | float] = {
        "device": device.device_kind if device.platform != "cpu" else _processor(),
        "platform": device.platform,
        "devices": jax.device_count(),
        "python": platform.python_version(),
    }
    if limit := (device.memory_stats() or {}).get("bytes_limit"):
        found["memory_gib_of_jax"] = limit / 2**30
    found |= _nvidia() | {name: _version(name) for name in PACKAGES}
    cudnn = sorted(
        f"{name} {distribution.version}"
        for distribution in importlib.metadata.distributions()
        if (name := distribution.metadata["Name"] or "").startswith("nvidia-cudnn")
    )
    if cudnn:
        found["cudnn"] = ", ".join(dict.fromkeys(cudnn))
    if flags := os.environ.get("XLA_FLAGS"):
        found["xla_flags"] = flags
    if commit := _output("git", "-C", str(ROOT), "describe", "--always", "--dirty"):
        found["commit"] = commit
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _nvidia() -> dict[str, str]:
    fields = "name,driver_version,memory.total,power.limit,clocks.max.sm"
    answer = _output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    if not answer:
        return {}
    names = ("gpu", "driver", "gpu_memory", "power_limit", "max_clock")
    return dict(zip(names, answer.splitlines()[0].split(", "), strict=False))


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _output(*command: str) -> str:
    """What the program prints; nothing where it is not installed or fails."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""
