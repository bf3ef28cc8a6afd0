"""What this device can do at best, which the other numbers are to be read against."""

import jax
import jax.numpy as jnp
import torch

from benchmarks.accelerator import timing
from benchmarks.accelerator.record import Ask, attempt

TITLE = "Ceilings of the device: copy within its memory and bfloat16 matrix product"
SECONDS = 25


def run(ask: Ask) -> None:
    size, copied = (256, 2**22) if ask.tiny else (8192, 2**30)
    attempt(ask, "copy, jax", lambda: _copy(_jax_copy(copied), copied))
    attempt(ask, "copy, torch", lambda: _copy(_torch_copy(copied), copied))
    attempt(ask, f"matmul {size}, jax", lambda: _matmul(_jax_matmul(size), size))
    attempt(ask, f"matmul {size}, torch", lambda: _matmul(_torch_matmul(size), size))


def _copy(seconds: float, size: int) -> dict[str, float]:
    """Bytes read and bytes written both count."""
    return {"gib": size / 2**30, "ms": 1e3 * seconds, "tb_per_s": 2 * size / seconds / 1e12}


def _matmul(seconds: float, size: int) -> dict[str, float]:
    return {"ms": 1e3 * seconds, "tflop_per_s": 2 * size**3 / seconds / 1e12}


def _jax_copy(size: int) -> float:
    values = jax.random.bits(jax.random.key(0), (size // 4,), jnp.uint32)
    copy = jax.jit(lambda x: x ^ 1)  # a copy proper could be left out
    return timing.seconds(lambda: copy(values), jax.block_until_ready)


def _torch_copy(size: int) -> float:
    values = torch.randint(0, 2**31 - 1, (size // 4,), dtype=torch.int32, device=_device())
    return timing.seconds(values.clone, timing.torch_wait)


def _jax_matmul(size: int) -> float:
    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in (0, 1))
    multiply = jax.jit(jnp.matmul)
    return timing.seconds(lambda: multiply(a, b), jax.block_until_ready)


def _torch_matmul(size: int) -> float:
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=_device()) for _ in range(2))
    return timing.seconds(lambda: a @ b, timing.torch_wait)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
