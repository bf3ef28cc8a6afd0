"""Every attention of a GPU in bfloat16 beside XLA's in float32, forward and gradients."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator import attention_cases as cases
from benchmarks.accelerator.record import Ask, attempt
from mmsrec_jax.models import attention as lib

TITLE = "Attention in bfloat16 against XLA in float32: relative errors, forward and gradients"
SECONDS = 60
LIMIT = 1e-2


def run(ask: Ask) -> None:
    for case in _cases(ask.tiny):
        reference = functools.cache(functools.partial(_computed, case, "xla", "float32"))
        for name in lib.GPU_IMPLEMENTATIONS:
            attempt(ask, f"{case.name}, {name}", lambda: _row(case, name, reference()))  # noqa: B023


def _cases(tiny: bool) -> Iterator[cases.Case]:
    length = 140 if tiny else 1000  # neither is a multiple of a block
    yield cases.packed(
        "packed, 16 heads on 2, head 128", 2, length, (3, 9), heads=16, kv_heads=2, head_dim=128
    )
    yield cases.packed(
        "packed, 8 heads, head 64", 2, length, (2, 5), heads=8, kv_heads=8, head_dim=64
    )
    yield cases.scoring(
        "suffixes, 16 heads on 2, head 128", 2, length // 4, 7, length // 10,
        heads=16, kv_heads=2, head_dim=128,
    )  # fmt: skip
    yield cases.one_segment(
        "one segment, 16 heads on 4, head 128", 1, length, heads=16, kv_heads=4, head_dim=128
    )
    yield cases.tower("tower, windows of 64, head 80", 1, length, 64, heads=16, head_dim=80)
    yield cases.tower("tower, images of 256, head 64", 2, length, 256, heads=16, head_dim=64)


def _computed(case: cases.Case, name: lib.Implementation, dtype: str) -> list[np.ndarray]:
    """Output and gradients of q, k and v."""
    tensors = [jnp.asarray(x, dtype) for x in cases.tensors(case)]

    @jax.jit
    def both(
        ids: tuple[jax.Array, jax.Array | None],
        q: jax.Array, k: jax.Array, v: jax.Array, cotangent: jax.Array,
    ) -> tuple[jax.Array, ...]:  # fmt: skip
        visible = cases.visible(case.causal, dtype, *ids)
        found = cases.forward(q, k, v, visible, cotangent)
        return (found, *cases.gradients(q, k, v, visible, cotangent))

    with lib.force(name):
        return [np.asarray(x, np.float32) for x in both(case.ids(), *tensors)]


def _row(
    case: cases.Case, name: lib.Implementation, reference: list[np.ndarray]
) -> Mapping[str, Any]:
    found = _computed(case, name, "bfloat16")
    errors = {
        f"error_{part}": cases.error(x, y, case.live)
        for part, x, y in zip(("out", "dq", "dk", "dv"), found, reference, strict=True)
    }
    good = all(value <= LIMIT for value in errors.values())  # False for NaN
    return errors | {"limit": LIMIT, "result": "pass" if good else "FAIL"}
