"""Every family forward: float32 here and on the host, bfloat16 by the attention of a GPU.

Small random models on packed rows with images and suffixes; errors of all logits, relative.
"""

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.accelerator import small_models
from benchmarks.accelerator.record import Ask, attempt
from mmsrec_jax.models import attention as lib

TITLE = "Families: logits in float32 here against the host, in bfloat16 against float32"
SECONDS = 60
LIMITS = {"float32": 1e-4, "bfloat16": 3e-2}


EXACT = "float32, here against the host"
ROUNDED = "bfloat16, flash"
VARIANTS = (EXACT, ROUNDED)


def run(ask: Ask) -> None:
    with ThreadPoolExecutor() as pool:  # XLA leaves most cores of the host idle
        waiting = {
            family: _Logits(family, 1 if ask.tiny else 4, pool)
            for family in small_models.FAMILIES
            if not ask.done >= {f"{family}, {variant}" for variant in VARIANTS}
        }
        for family, logits in waiting.items():
            for variant in VARIANTS:
                attempt(ask, f"{family}, {variant}", lambda: logits.row(variant))  # noqa: B023


class _Logits:
    """Those of one family, computed in the threads of `pool`."""

    def __init__(self, family: str, rows: int, pool: ThreadPoolExecutor):
        self._config = small_models.FAMILIES[family]
        self._arguments = (
            small_models.weights(self._config),
            small_models.batch(self._config, rows).model_inputs(),
        )
        here, host = jax.devices()[0], jax.devices("cpu")[0]
        self._here = pool.submit(self._computed, "float32", here)
        self._host = pool.submit(self._computed, "float32", host)
        self._rounded = pool.submit(self._computed, "bfloat16", here, "flash")

    def _computed(
        self, dtype: str, device: jax.Device, name: lib.Implementation = "xla"
    ) -> np.ndarray:
        graphdef = nnx.split(small_models.model(self._config, dtype))[0]
        # A new function: JAX would take a known one as it was traced for another implementation.
        program = jax.jit(functools.partial(small_models.logits, graphdef))
        with lib.force(name):
            return np.asarray(program(*jax.device_put(self._arguments, device)))

    def row(self, variant: str) -> dict[str, Any]:
        found, reference = self._here, self._host
        if variant == ROUNDED:
            found, reference = self._rounded, self._here
        segments = self._arguments[1].segment_ids
        error = small_models.relative_error(found.result(), reference.result(), segments)
        limit = LIMITS[variant.partition(",")[0]]
        result = "pass" if error <= limit else "FAIL"  # NaN fails
        return {"error": error, "limit": limit, "result": result}
