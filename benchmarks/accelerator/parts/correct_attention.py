"""Every attention of a GPU in bfloat16 beside XLA's in float32, forward and gradients."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator import attention_cases as cases
from benchmarks.accelerator.record import Ask, attempt
from mmsrec_jax.models import attention as lib

TITLE = "Attention in bfloat16 against XLA in float32: relative errors, forward and gradients"
SECONDS = 40
LIMIT = 1e-2


def run(ask: Ask) -> None:
    with ThreadPoolExecutor() as pool:  # XLA leaves most cores of the host idle
        waiting = []
        for case in _cases(ask.tiny):
            names = [name for name in lib.GPU_IMPLEMENTATIONS if _title(case, name) not in ask.done]
            if names:
                reference = pool.submit(_computed, case, "xla", "float32")
            for name in names:
                waiting.append(
                    (case, name, pool.submit(_computed, case, name, "bfloat16"), reference)
                )
        for case, name, found, reference in waiting:
            attempt(ask, _title(case, name), lambda: _row(case, found.result(), reference.result()))  # noqa: B023


def _title(case: cases.Case, name: str) -> str:
    return f"{case.name}, {name}"


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
    case: cases.Case, found: list[np.ndarray], reference: list[np.ndarray]
) -> Mapping[str, Any]:
    errors = {
        f"error_{part}": cases.error(x, y, case.live)
        for part, x, y in zip(("out", "dq", "dk", "dv"), found, reference, strict=True)
    }
    good = all(value <= LIMIT for value in errors.values())  # False for NaN
    return errors | {"limit": LIMIT, "result": "pass" if good else "FAIL"}
