"""Attention on a CPU that skips what nobody sees, beside the dense product, in turn.

    python benchmarks/attention_cpu.py

Candidates after a shared prefix, packed examples, a tower's images and windows, and one segment, of
which nothing can be skipped. Results and gradients must agree. Prints one line of JSON a case:
medians in seconds, of the forward pass and with gradients.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmsrec_jax.models import attention
from mmsrec_jax.models.attention import Implementation, Layout, Visible

REPEATS, DIM, TOLERANCE = 3, 64, 1e-3
SIDES: tuple[Implementation, ...] = ("xla", "blocks")


def ids(length: int, each: int) -> jax.Array:
    """int32[1, length]: 1 for the first `each`, 2 for the next ones, and so on."""
    return jnp.asarray(1 + np.arange(length, dtype=np.int32) // each)[None]


def causal(segments: jax.Array, suffixes: jax.Array | None = None) -> Callable[[], Visible]:
    layout = Layout(segments, suffixes, jnp.arange(segments.shape[1])[None])
    return lambda: attention.causal(layout, None, jnp.float32)


def within(segments: jax.Array) -> Callable[[], Visible]:
    return lambda: attention.within_segments(segments, jnp.float32)


def cases() -> dict[str, tuple[int, int, int, Callable[[], Visible]]]:
    """Length, heads, kv heads, and who sees whom."""
    suffixes = jnp.concatenate([jnp.zeros((1, 400), jnp.int32), ids(21 * 107, 107)], axis=1)
    joint = suffixes.shape[1]
    return {
        "21 candidates of 107 after 400": (joint, 8, 2, causal(ids(joint, joint), suffixes)),
        "packed examples of 200": (2048, 8, 2, causal(ids(2048, 200))),
        "21 images of 256 patches": (5376, 5, 5, within(ids(5376, 256))),
        "windows of 64 patches": (5376, 5, 5, within(ids(5376, 64))),
        "one segment": (1024, 8, 2, causal(ids(1024, 1024))),
    }


def median(works: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of each, in turn; the first time is dropped."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(REPEATS + 1):
        for name, work in works.items():
            began = time.perf_counter()
            jax.block_until_ready(work())
            found[name].append(time.perf_counter() - began)
    return {name: round(statistics.median(each[1:]), 4) for name, each in found.items()}


def compare(name: str, length: int, heads: int, kv_heads: int, who: Callable[[], Visible]) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.normal(size=(1, length, n, DIM)), jnp.float32)
        for n in (heads, kv_heads, kv_heads)
    )
    works: dict[str, dict[str, Callable[[], Any]]] = {"forward": {}, "with_gradients": {}}
    for side in SIDES:

        def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return attention.attention(q, k, v, who())

        def gradients(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
            return jax.grad(lambda *qkv: jnp.sum(forward(*qkv) ** 2), (0, 1, 2))(q, k, v)

        with attention.force(side):
            for kind, work in (("forward", forward), ("with_gradients", gradients)):
                compiled = jax.jit(work).lower(q, k, v).compile()
                works[kind][side] = lambda compiled=compiled: compiled(q, k, v)
    for each in works.values():
        pairs = zip(*(jax.tree.leaves(each[side]()) for side in SIDES), strict=True)
        if not all(float(jnp.abs(a - b).max()) <= TOLERANCE for a, b in pairs):
            raise SystemExit(f"{name}: results differ")
    print(json.dumps({"case": name} | {kind: median(each) for kind, each in works.items()}))


def main() -> None:
    for name, case in cases().items():
        compare(name, *case)


if __name__ == "__main__":
    main()
