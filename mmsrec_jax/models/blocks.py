"""Attention in plain XLA that visits only the blocks that a `BlockMask` lists (*ours*).

For CPUs, which have no kernel of their own. All blocks of queries go through their lists side by
side, some blocks of keys at a time, with a running softmax as in FlashAttention. Where little can
be skipped one dense product is faster, and is what runs: which of the two, the ids decide.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmsrec_jax.models import block_mask as lib
from mmsrec_jax.models.block_mask import BlockMask, Tokens
from mmsrec_jax.models.layers import precision

_AT_A_TIME = 4  # blocks of STREAMED keys
# Dense where the longest list holds more than this share of the keys: gathering costs as well.
_DENSE_ABOVE = 0.5
MASKED = -1e30  # finite: a row that sees nothing (padding) averages instead of giving NaN


class _Softmax(NamedTuple):
    """So far, [B, blocks, kv_heads, groups, KEPT] each, `out` with head_dim after them."""

    out: jax.Array
    top: jax.Array
    total: jax.Array


@jax.custom_vjp
def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: BlockMask) -> jax.Array:
    """As `models.attention.attention`, on one device."""
    return _forward(q, k, v, mask)[0]


class _Saved(NamedTuple):
    """For the backward pass. lse: logarithms of the sums of weights, like `_Softmax.top`; only
    where lists were gone through."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    mask: BlockMask
    out: jax.Array
    lse: jax.Array


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, mask: BlockMask) -> tuple[jax.Array, _Saved]:
    def dense_too() -> tuple[jax.Array, jax.Array]:
        rows, length, heads, _ = q.shape
        kv_heads, blocks = k.shape[2], -(-length // lib.KEPT)
        shape = rows, blocks, kv_heads, heads // kv_heads, lib.KEPT
        return _dense(q, k, v, mask), jnp.zeros(shape, jnp.float32)

    out, lse = jax.lax.cond(_little_to_skip(k, mask), dense_too, lambda: _listed(q, k, v, mask))
    return out, _Saved(q, k, v, mask, out, lse)


def _backward(saved: _Saved, d_out: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, mask, *_ = saved

    def of_dense() -> tuple[jax.Array, jax.Array, jax.Array]:
        return jax.vjp(lambda q, k, v: _dense(q, k, v, mask), q, k, v)[1](d_out)

    found = jax.lax.cond(_little_to_skip(k, mask), of_dense, lambda: _listed_backward(saved, d_out))
    return *found, None


attention.defvjp(_forward, _backward)


def _little_to_skip(k: jax.Array, mask: BlockMask) -> jax.Array:
    most = jnp.max(mask.of_queries.visited, initial=0)
    return most * lib.STREAMED > _DENSE_ABOVE * k.shape[1]


def _dense(q: jax.Array, k: jax.Array, v: jax.Array, mask: BlockMask) -> jax.Array:
    seen = _sees(_spread(mask.queries, 2), _spread(mask.keys, 1))
    return dense(q, k, v, seen[:, : q.shape[1], : k.shape[1]])


def dense(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array | None) -> jax.Array:
    """`models.attention.attention` of a mask bool[B, T, S] or None."""
    *rows, heads, head_dim = q.shape
    q = q.reshape(*rows, k.shape[2], heads // k.shape[2], head_dim) * head_dim**-0.5
    scores = jnp.einsum(
        "btkgh,bskh->bktgs",
        q.astype(k.dtype),
        k,
        precision=precision(k.dtype),
        preferred_element_type=jnp.float32,
    )
    if visible is not None:
        scores = jnp.where(visible[:, None, :, None, :], scores, MASKED)
    # Softmax, divided after the sum over keys, where there is less to divide: faster on CPU.
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    out = jnp.einsum(
        "bktgs,bskh->bktgh",
        weights.astype(v.dtype),
        v,
        precision=precision(v.dtype),
        preferred_element_type=jnp.float32,
    )
    out = out / jnp.sum(weights, axis=-1, keepdims=True)
    return jnp.moveaxis(out, 1, 2).reshape(*rows, heads, head_dim).astype(v.dtype)


class _Lists:
    """Queries, keys and values in blocks, and what the lists say of them.

    Attributes:
      queries: [B, n, kv_heads, groups, KEPT, head_dim], scaled.
      keys, values: [B, blocks, STREAMED, kv_heads, head_dim].
      steps: how often `_AT_A_TIME` blocks of keys are visited by all blocks of queries.
    """

    def __init__(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: BlockMask):
        self.kv_heads = k.shape[2]
        self.exact = {"precision": precision(k.dtype), "preferred_element_type": jnp.float32}
        self.queries = self.in_blocks(q * q.shape[3] ** -0.5).astype(k.dtype)
        self.keys, self.values = (
            lib.padded(x, 1).reshape(len(x), -1, lib.STREAMED, *x.shape[2:]) for x in (k, v)
        )
        self._own = jax.tree.map(lambda x: x.reshape(len(x), -1, lib.KEPT, 1), mask.queries)
        self._others = jax.tree.map(lambda x: x.reshape(len(x), -1, lib.STREAMED), mask.keys)
        indices, self._visited = mask.of_queries.indices, mask.of_queries.visited
        width = [(0, 0), (0, 0), (0, -indices.shape[2] % _AT_A_TIME)]
        self._indices = jnp.pad(indices, width)
        self.steps = -(-jnp.max(self._visited, initial=1) // _AT_A_TIME)

    def in_blocks(self, x: jax.Array) -> jax.Array:
        """[B, T, heads, head_dim] like `queries`."""
        rows, _, heads, head_dim = x.shape
        shape = rows, -1, lib.KEPT, self.kv_heads, heads // self.kv_heads, head_dim
        return jnp.moveaxis(lib.padded(x, 1).reshape(shape), 2, 4)

    def tokens(self, x: jax.Array, length: int) -> jax.Array:
        """The reverse of `in_blocks`."""
        x = jnp.moveaxis(x, 4, 2)
        return x.reshape(len(x), -1, self.kv_heads * x.shape[4], x.shape[5])[:, :length]

    def visit(self, step: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Which blocks of keys int32[B, n, _AT_A_TIME]; scores of their S keys
        [B, n, kv_heads, groups, KEPT, S], and these and their values [B, n, S, kv_heads, head_dim].
        """
        start = step * _AT_A_TIME
        at = jax.lax.dynamic_slice_in_dim(self._indices, start, _AT_A_TIME, axis=2)
        listed = start + jnp.arange(_AT_A_TIME) < self._visited[..., None]
        others = jax.tree.map(lambda x: _taken(x, at)[:, :, None], self._others)
        seen = _sees(self._own, others) & jnp.repeat(listed, lib.STREAMED, axis=2)[:, :, None]
        keys, values = _taken(self.keys, at), _taken(self.values, at)
        scores = jnp.einsum("bnkgtd,bnskd->bnkgts", self.queries, keys, **self.exact)
        return at, jnp.where(seen[:, :, None, None], scores, MASKED), keys, values


def _listed(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: BlockMask
) -> tuple[jax.Array, jax.Array]:
    """The output, and `_Saved.lse`."""
    lists = _Lists(q, k, v, mask)

    def body(step: jax.Array, before: _Softmax) -> _Softmax:
        _, scores, _, values = lists.visit(step)
        top = jnp.maximum(before.top, jnp.max(scores, axis=-1))
        weights = jnp.exp(scores - top[..., None])
        out = jnp.einsum("bnkgts,bnskd->bnkgtd", weights.astype(v.dtype), values, **lists.exact)
        kept = jnp.exp(before.top - top)
        total = before.total * kept + jnp.sum(weights, axis=-1)
        return _Softmax(before.out * kept[..., None] + out, top, total)

    shape = lists.queries.shape
    nothing = jnp.zeros(shape[:-1], jnp.float32)
    start = _Softmax(jnp.zeros(shape, jnp.float32), nothing + MASKED, nothing)
    found = jax.lax.fori_loop(0, lists.steps, body, start)
    out = lists.tokens(found.out / found.total[..., None], q.shape[1])
    return out.astype(v.dtype), found.top + jnp.log(found.total)


def _listed_backward(saved: _Saved, d_out: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As in FlashAttention-2, with the gradients of keys added up block by block."""
    q, k, v, mask, out, lse = saved
    lists = _Lists(q, k, v, mask)
    d_own = lists.in_blocks(d_out)
    delta = jnp.sum(d_own.astype(jnp.float32) * lists.in_blocks(out).astype(jnp.float32), axis=-1)
    rows = jnp.arange(len(q))[:, None, None]

    def added(whole: jax.Array, at: jax.Array, part: jax.Array) -> jax.Array:
        return whole.at[rows, at].add(part.reshape(*at.shape, *whole.shape[2:]))

    def body(step: jax.Array, before: tuple) -> tuple:
        dq, dk, dv = before
        at, scores, keys, values = lists.visit(step)
        weights = jnp.exp(scores - lse[..., None])
        d_weights = jnp.einsum("bnkgtd,bnskd->bnkgts", d_own, values, **lists.exact)
        d_scores = (weights * (d_weights - delta[..., None])).astype(k.dtype)
        weights = weights.astype(v.dtype)
        return (
            dq + jnp.einsum("bnkgts,bnskd->bnkgtd", d_scores, keys, **lists.exact),
            added(
                dk, at, jnp.einsum("bnkgts,bnkgtd->bnskd", d_scores, lists.queries, **lists.exact)
            ),
            added(dv, at, jnp.einsum("bnkgts,bnkgtd->bnskd", weights, d_own, **lists.exact)),
        )

    start = (
        jnp.zeros(lists.queries.shape, jnp.float32),
        jnp.zeros(lists.keys.shape, jnp.float32),
        jnp.zeros(lists.values.shape, jnp.float32),
    )
    dq, dk, dv = jax.lax.fori_loop(0, lists.steps, body, start)
    dq = lists.tokens(dq, q.shape[1]) * q.shape[3] ** -0.5
    dk, dv = (x.reshape(len(x), -1, *x.shape[3:])[:, : k.shape[1]] for x in (dk, dv))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


def _taken(x: jax.Array, at: jax.Array) -> jax.Array:
    """Blocks `at` int32[B, n, m] of [B, blocks, STREAMED, ...]: [B, n, m * STREAMED, ...]."""
    found = jax.vmap(lambda x, at: x[at])(x, at)
    return found.reshape(*at.shape[:2], -1, *x.shape[3:])


def _spread(tokens: Tokens, axis: int) -> Tokens:
    return jax.tree.map(lambda x: jnp.expand_dims(x, axis), tokens)


def _sees(queries: Tokens, keys: Tokens) -> jax.Array:
    seen = queries.group == keys.group
    if queries.shared is not None:
        seen |= queries.shared == keys.group
    if queries.slots is not None and keys.slots is not None:
        seen &= keys.slots <= queries.slots
    return seen
