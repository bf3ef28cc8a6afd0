"""Seconds of work that a device does while the host goes on."""

import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from jax.stages import Compiled, Lowered

T = TypeVar("T")


def compiled(lowered: Iterable[Lowered]) -> list[Compiled]:
    """Compiles several programs at a time: XLA leaves most cores of the host idle."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda program: program.compile(), lowered))


def seconds(
    start: Callable[[], T], wait: Callable[[T], object], *, samples: int = 7, least: float = 0.03
) -> float:
    """Median seconds of one call, after calls that compile and warm up.

    start: begins the work and returns what `wait` waits for.
    wait: `jax.block_until_ready`, or a function that synchronizes torch.
    samples: of each the mean over as many calls as take `least` seconds, so that neither launching
      nor waiting counts where the device is the slower side.
    """
    wait(start())
    begun = time.perf_counter()
    wait(start())
    once = time.perf_counter() - begun
    calls = max(1, min(round(least / max(once, 1e-6)), 100))
    times = []
    for _ in range(samples):
        begun = time.perf_counter()
        for _ in range(calls):
            result = start()
        wait(result)
        times.append((time.perf_counter() - begun) / calls)
    return statistics.median(times)


def torch_wait(_: object = None) -> None:
    """Until torch's device has done all that was begun."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
