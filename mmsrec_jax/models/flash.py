"""FlashAttention-2 (arXiv 2307.08691) for NVIDIA GPUs, written in Pallas for Triton (*ours*).

The kernels read ids of tokens instead of a mask of token pairs, and visit only the blocks that a
`BlockMask` lists. Scores are in base 2, where exponentials are one instruction.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from mmsrec_jax.models import block_mask as lib
from mmsrec_jax.models.block_mask import BlockList, BlockMask, Tokens

WARPS, STAGES = 8, 3  # of a program: its threads / 32; blocks of the other side on their way
# Finite: a row that sees nothing (padding) averages instead of giving NaN. A power of two: its
# product with the scale is exact, so that a fused multiply-subtract of it and the maximum gives 0.
MASKED = -(2.0**100)


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: BlockMask, *, interpret: bool
) -> jax.Array:
    """As `models.attention.attention`, on one device; lengths are padded to blocks.

    interpret: run the kernels as plain JAX, on any platform.
    """
    length = q.shape[1]
    q, k, v = (lib.padded(x, 1) for x in (q.astype(k.dtype), k, v))
    return _attention(q, k, v, mask, interpret)[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: BlockMask, interpret: bool
) -> jax.Array:
    return _forward(q, k, v, mask, interpret)[0]


def _attention_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: BlockMask, interpret: bool
) -> tuple[jax.Array, tuple]:
    out, lse = _forward(q, k, v, mask, interpret)
    return out, (q, k, v, mask, out, lse)


def _attention_backward(
    interpret: bool, saved: tuple, d_out: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, mask, out, lse = saved
    delta = jnp.einsum("bthd,bthd->bht", out, d_out, preferred_element_type=jnp.float32)
    shared = d_out, lse, delta, mask, interpret
    return _backward_queries(q, k, v, *shared), *_backward_keys(q, k, v, *shared), None


_attention.defvjp(_attention_forward, _attention_backward)


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: BlockMask, interpret: bool
) -> tuple[jax.Array, jax.Array]:
    """The output, and float32[B, heads, T], base-2 logarithms of the sums of weights."""
    grid = _Grid.of_queries(q)
    own, numbers = grid.kept(q), grid.numbers()
    others = grid.streamed(k, q.shape[2] // k.shape[2])
    return grid.call(
        functools.partial(_forward_kernel, head_dim=q.shape[3]),
        [own, others, others, *grid.mask(mask.queries, mask.keys, mask.of_queries)],
        [own, numbers],
        [
            jax.ShapeDtypeStruct(q.shape, v.dtype),
            jax.ShapeDtypeStruct((q.shape[0], q.shape[2], q.shape[1]), jnp.float32),
        ],
        interpret,
    )(q, k, v, mask.queries, mask.keys, mask.of_queries)


def _backward_queries(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    d_out: jax.Array,
    lse: jax.Array,
    delta: jax.Array,
    mask: BlockMask,
    interpret: bool,
) -> jax.Array:
    grid = _Grid.of_queries(q)
    own, numbers = grid.kept(q), grid.numbers()
    others = grid.streamed(k, q.shape[2] // k.shape[2])
    (dq,) = grid.call(
        functools.partial(_backward_queries_kernel, head_dim=q.shape[3]),
        [
            *(own, others, others, own, numbers, numbers),
            *grid.mask(mask.queries, mask.keys, mask.of_queries),
        ],
        [own],
        [jax.ShapeDtypeStruct(q.shape, q.dtype)],
        interpret,
    )(q, k, v, d_out, lse, delta, mask.queries, mask.keys, mask.of_queries)
    return dq


def _backward_keys(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    d_out: jax.Array,
    lse: jax.Array,
    delta: jax.Array,
    mask: BlockMask,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """A program sums over the query heads of its kv head: k and v are never repeated."""
    grid = _Grid.of_keys(k)
    own, (_, queries, heads, head_dim) = grid.kept(k), q.shape
    per_kv = heads // grid.heads
    group = grid.spec((None, queries, per_kv, _wide(head_dim)), lambda h, b, i: (b, 0, h, 0))
    numbers = grid.spec((None, per_kv, queries), lambda h, b, i: (b, h, 0))
    return grid.call(
        functools.partial(_backward_keys_kernel, per_kv=per_kv, head_dim=head_dim),
        [
            *(group, own, own, group, numbers, numbers),
            *grid.mask(mask.keys, mask.queries, mask.of_keys),
        ],
        [own, own],
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
        interpret,
    )(q, k, v, d_out, lse, delta, mask.keys, mask.queries, mask.of_keys)


@dataclasses.dataclass(frozen=True)
class _Grid:
    """Programs of a kernel, about as they start: all heads of a block, which read the same keys,
    then rows, then blocks; and what of an array a program gets.

    last_first: whether the last block starts first. Under the causal rule the last queries and the
    first keys have most to do, and are not to start last.
    """

    heads: int
    rows: int
    blocks: int
    last_first: bool

    @classmethod
    def of_queries(cls, q: jax.Array) -> "_Grid":
        return cls(q.shape[2], q.shape[0], q.shape[1] // lib.KEPT, last_first=True)

    @classmethod
    def of_keys(cls, k: jax.Array) -> "_Grid":
        return cls(k.shape[2], k.shape[0], k.shape[1] // lib.KEPT, last_first=False)

    def spec(
        self, shape: Sequence[int | None], place: Callable[[Any, Any, Any], tuple]
    ) -> pl.BlockSpec:
        """place: where it stands, in units of the shape, from head, row and block."""
        last = self.blocks - 1
        return pl.BlockSpec(shape, lambda h, b, i: place(h, b, last - i if self.last_first else i))

    def kept(self, x: jax.Array) -> pl.BlockSpec:
        """Of [B, L, heads, head_dim], the program's block and head."""
        shape = (None, lib.KEPT, None, _wide(x.shape[3]))
        return self.spec(shape, lambda h, b, i: (b, i, h, 0))

    def numbers(self) -> pl.BlockSpec:
        """Of [B, heads, L], the program's block and head."""
        return self.spec((None, None, lib.KEPT), lambda h, b, i: (b, h, i))

    def streamed(self, x: jax.Array, heads: int) -> pl.BlockSpec:
        """Of [B, L, kv_heads, head_dim], all tokens of one kv head, which `heads` heads share."""
        shape = (None, x.shape[1], None, _wide(x.shape[3]))
        return self.spec(shape, lambda h, b, i: (b, 0, jax.lax.div(h, heads), 0))

    def mask(self, own: Tokens, others: Tokens, blocks: BlockList) -> Sequence[Any]:
        def kept(_: jax.Array) -> pl.BlockSpec:
            return self.spec((None, lib.KEPT), lambda h, b, i: (b, i))

        def whole(x: jax.Array) -> pl.BlockSpec:
            return self.spec((None, x.shape[1]), lambda h, b, i: (b, 0))

        def listed(x: jax.Array) -> pl.BlockSpec:
            rest = x.shape[2:]
            return self.spec((None, None, *rest), lambda h, b, i: (b, i, *[0] * len(rest)))

        return jax.tree.map(kept, own), jax.tree.map(whole, others), jax.tree.map(listed, blocks)

    def call(
        self,
        kernel: Callable[..., None],
        in_specs: Sequence[Any],
        out_specs: Sequence[pl.BlockSpec],
        out_shape: Sequence[jax.ShapeDtypeStruct],
        interpret: bool,
    ) -> Callable[..., Any]:
        # Imported where it is needed: TPU and CPU do not need it to be there.
        from jax.experimental.pallas import triton

        return pl.pallas_call(
            kernel,
            grid=(self.heads, self.rows, self.blocks),
            in_specs=in_specs,
            out_specs=out_specs,
            out_shape=out_shape,
            compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=STAGES),
            interpret=interpret,
        )


def _wide(head_dim: int) -> int:
    """Triton's sizes are powers of two; what is too much is not read."""
    return pl.next_power_of_2(head_dim)


def _forward_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    queries_ref: Tokens,
    keys_ref: Tokens,
    blocks_ref: BlockList,
    out_ref: Any,
    lse_ref: Any,
    *,
    head_dim: int,
) -> None:
    q, queries = _load(q_ref, head_dim), _column(queries_ref)
    scale = math.log2(math.e) * head_dim**-0.5

    def step(masked: bool, at: Any, _: Any, carry: tuple) -> tuple:
        out, top, total = carry
        scores = _dot(q, _load(k_ref.at[at, :], head_dim).T)
        if masked:
            scores = jnp.where(_sees(queries, _row(keys_ref, at)), scores, MASKED)
        top, before = jnp.maximum(top, jnp.max(scores, axis=1)), top
        weights = jnp.exp2((scores - top[:, None]) * scale)
        shrunk = jnp.exp2((before - top) * scale)
        v = _load(v_ref.at[at, :], head_dim)
        out = out * shrunk[:, None] + _dot(weights.astype(v.dtype), v)
        return out, top, total * shrunk + jnp.sum(weights, axis=1)

    kept = q.shape[0]
    start = jnp.zeros(q.shape, jnp.float32), jnp.full(kept, MASKED), jnp.zeros(kept, jnp.float32)
    out, top, total = _visit(blocks_ref, 1, step, start)
    total = jnp.where(total == 0, 1, total)  # nothing visited
    lse_ref[...] = top * scale + jnp.log2(total)
    _store(out_ref, out / total[:, None], head_dim)


def _backward_queries_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    d_out_ref: Any,
    lse_ref: Any,
    delta_ref: Any,
    queries_ref: Tokens,
    keys_ref: Tokens,
    blocks_ref: BlockList,
    dq_ref: Any,
    *,
    head_dim: int,
) -> None:
    q, d_out = _load(q_ref, head_dim), _load(d_out_ref, head_dim)
    queries, lse, delta = _column(queries_ref), lse_ref[...][:, None], delta_ref[...][:, None]
    scale = math.log2(math.e) * head_dim**-0.5

    def step(masked: bool, at: Any, _: Any, dq: jax.Array) -> jax.Array:
        k = _load(k_ref.at[at, :], head_dim)
        weights = jnp.exp2(_dot(q, k.T) * scale - lse)
        if masked:
            weights = jnp.where(_sees(queries, _row(keys_ref, at)), weights, 0)
        slope = weights * (_dot(d_out, _load(v_ref.at[at, :], head_dim).T) - delta)
        return dq + _dot(slope.astype(k.dtype), k)

    dq = _visit(blocks_ref, 1, step, jnp.zeros(q.shape, jnp.float32))
    _store(dq_ref, dq * head_dim**-0.5, head_dim)


def _backward_keys_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    d_out_ref: Any,
    lse_ref: Any,
    delta_ref: Any,
    keys_ref: Tokens,
    queries_ref: Tokens,
    blocks_ref: BlockList,
    dk_ref: Any,
    dv_ref: Any,
    *,
    per_kv: int,
    head_dim: int,
) -> None:
    """Scores are transposed, [keys, queries]: so they enter the products as they stand."""
    k, v, keys = _load(k_ref, head_dim), _load(v_ref, head_dim), _column(keys_ref)
    scale = math.log2(math.e) * head_dim**-0.5

    def step(masked: bool, at: Any, head: Any, carry: tuple) -> tuple:
        dk, dv = carry
        q = _load(q_ref.at[at, head, :], head_dim)
        d_out = _load(d_out_ref.at[at, head, :], head_dim)
        weights = jnp.exp2(_dot(k, q.T) * scale - lse_ref[head, at][None, :])
        if masked:
            weights = jnp.where(_sees(_row(queries_ref, at), keys), weights, 0)
        dv += _dot(weights.astype(d_out.dtype), d_out)
        slope = weights * (_dot(v, d_out.T) - delta_ref[head, at][None, :])
        return dk + _dot(slope.astype(q.dtype), q), dv

    start = jnp.zeros(k.shape, jnp.float32)
    dk, dv = _visit(blocks_ref, per_kv, step, (start, start))
    _store(dk_ref, dk * head_dim**-0.5, head_dim)
    _store(dv_ref, dv, head_dim)


def _visit(blocks_ref: BlockList, heads: int, step: Callable[..., Any], carry: Any) -> Any:
    """Carries through step(masked, tokens of the block, head, carry): full blocks, then others."""

    def visit(masked: bool, i: jax.Array, carry: Any) -> Any:
        # One loop over blocks and heads: Triton overlaps loads with products within a loop.
        block, head = jax.lax.div(i, heads), jax.lax.rem(i, heads)
        at = pl.ds(blocks_ref.indices[block] * lib.STREAMED, lib.STREAMED)
        return step(masked, at, head, carry)

    full, visited = blocks_ref.full[...] * heads, blocks_ref.visited[...] * heads
    carry = jax.lax.fori_loop(0, full, functools.partial(visit, False), carry)
    return jax.lax.fori_loop(full, visited, functools.partial(visit, True), carry)


def _sees(queries: Tokens, keys: Tokens) -> jax.Array:
    seen = queries.group == keys.group
    if queries.shared is not None:
        seen |= queries.shared == keys.group
    if queries.slots is not None and keys.slots is not None:
        seen &= keys.slots <= queries.slots
    return seen


def _column(refs: Tokens) -> Tokens:
    return jax.tree.map(lambda ref: ref[...][:, None], refs)


def _row(refs: Tokens, at: Any) -> Tokens:
    return jax.tree.map(lambda ref: ref[at][None, :], refs)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jax.lax.dot(a, b, preferred_element_type=jnp.float32)


def _inside(width: int, head_dim: int) -> jax.Array | None:
    return None if width == head_dim else (jnp.arange(width) < head_dim)[None, :]


def _load(ref: Any, head_dim: int) -> jax.Array:
    from jax.experimental.pallas import triton

    inside = _inside(ref.shape[-1], head_dim)
    return triton.load(ref, mask=inside, other=None if inside is None else 0.0)


def _store(ref: Any, x: jax.Array, head_dim: int) -> None:
    from jax.experimental.pallas import triton

    triton.store(ref, x.astype(ref.dtype), mask=_inside(ref.shape[-1], head_dim))
