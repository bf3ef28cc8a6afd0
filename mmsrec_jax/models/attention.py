"""Attention of the decoder and the vision towers, and its implementation on each platform.

Who sees whom is decided once per forward pass (`causal`, `everything`) where it is the same in all
layers, in the form that the implementation reads, and handed to `attention` of every layer.

The implementation follows from the platform of the mesh's devices (without a mesh, of JAX's default
backend), which is known while tracing, also when a CPU host compiles for an absent TPU.
`jax.lax.platform_dependent` would decide while lowering, but a gradient then keeps what the
backward pass of every implementation needs, the quadratic one's too.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mmsrec_jax.models import blocks, flash, splash
from mmsrec_jax.models.block_mask import BlockMask, block_mask, tokens
from mmsrec_jax.runtime.sharding import is_divisible, per_device, platform

Implementation = Literal["xla", "blocks", "splash", "flash"]
GPU_IMPLEMENTATIONS: tuple[Implementation, ...] = ("xla", "flash")
_FUSED: dict[str, Implementation] = {"tpu": "splash", "gpu": "flash"}
_SHORTEST_ON_CPU = 512  # fewer queries have little to skip
_forced: contextvars.ContextVar[Implementation | None] = contextvars.ContextVar(
    "implementation", default=None
)

_LISTED: tuple[Implementation, ...] = ("blocks", "flash")  # these read a `BlockMask`

# A mask bool[B, T, S] or None (everything) for XLA.
Visible = jax.Array | None | splash.Segments | splash.Pairs | BlockMask


class Layout(NamedTuple):
    """Where tokens stand. Each int32[B, L].

    segment_ids: 0 padding, 1.. examples packed in the row.
    suffix_ids: 0 prefix, c >= 1 suffix c of the segment. None: all are prefix.
    slots: order for the causal rule.
    """

    segment_ids: jax.Array
    suffix_ids: jax.Array | None
    slots: jax.Array


def implementation(dtype: DTypeLike, queries: int) -> Implementation:
    """What `attention` of this many queries runs as.

    The fused kernels compute in 16 bits: float32, where results shall be exact, is left to XLA.
    So are few queries (decoding), whose scores are small and would fill no block of a kernel.
    """
    if queries < splash.SHORTEST:
        return "xla"
    if forced := _forced.get():
        return forced
    if platform() == "cpu":
        return "blocks" if queries >= _SHORTEST_ON_CPU else "xla"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return "xla"
    return _FUSED.get(platform(), "xla")


@contextlib.contextmanager
def force(name: Implementation) -> Iterator[None]:
    """Traces inside use this implementation, in every dtype; for tests and comparisons.

    Off their platforms splash and flash run interpreted. Compiled functions do not know about it:
    trace new ones.
    """
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def same_segment(query: jax.Array, key: jax.Array) -> jax.Array:
    """bool[B, T, S]: segments query int32[B, T] and key int32[B, S] are equal and not padding."""
    return (query[:, :, None] == key[:, None, :]) & (query[:, :, None] > 0)


def visibility(query: Layout, key: Layout) -> jax.Array:
    """bool[B, T, S]: same segment, at or before the query, in the prefix or the same suffix."""
    visible = same_segment(query.segment_ids, key.segment_ids) & (
        key.slots[:, None, :] <= query.slots[:, :, None]
    )
    if key.suffix_ids is None:
        return visible
    assert query.suffix_ids is not None, "keys and queries have suffixes, or neither has"
    suffix = key.suffix_ids[:, None, :]
    return visible & ((suffix == 0) | (suffix == query.suffix_ids[:, :, None]))


def causal(query: Layout, key: Layout | None, dtype: DTypeLike) -> Visible:
    """What `visibility` says, for `attention` in this dtype.

    key: None when queries are their own keys, in the order of their slots.
    """
    name = implementation(dtype, query.slots.shape[1])
    if name in _LISTED:
        keys = query if key is None else key
        assert (query.suffix_ids is None) == (keys.suffix_ids is None), "both have suffixes or none"
        return block_mask(tokens(*query, queries=True), tokens(*keys, queries=False))
    if name == "splash" and key is None and query.suffix_ids is None:
        return splash.Segments(query.segment_ids, causal=True)
    visible = visibility(query, query if key is None else key)
    return splash.pairs(visible) if name == "splash" else visible


def within_segments(ids: jax.Array, dtype: DTypeLike) -> Visible:
    """Tokens with ids int32[B, L] see their own segment, before and after; 0 is padding."""
    name = implementation(dtype, ids.shape[1])
    if name in _LISTED:
        return block_mask(*(tokens(ids, None, None, queries=side) for side in (True, False)))
    return splash.Segments(ids, causal=False) if name == "splash" else same_segment(ids, ids)


def within_either(
    first: jax.Array, second: jax.Array, dtype: DTypeLike
) -> Callable[[jax.Array], Visible]:
    """For layers that differ: from a flag bool[] of a layer, `within_segments` of one of two ids
    int32[B, L], the first where it is true."""
    if implementation(dtype, first.shape[1]) in _LISTED:
        masks = within_segments(first, dtype), within_segments(second, dtype)
        return lambda flag: jax.tree.map(lambda a, b: jnp.where(flag, a, b), *masks)
    # Elsewhere ids are small and masks are not: these are made in the layer that needs them.
    return lambda flag: within_segments(jnp.where(flag, first, second), dtype)


def everything(rows: int, length: int, dtype: DTypeLike) -> Visible:
    """All tokens of a row see each other."""
    if implementation(dtype, length) in ("splash", "flash"):  # there is nothing to skip
        return within_segments(jnp.ones((rows, length), jnp.int32), dtype)
    return None


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    visible: Visible,
    axes: tuple[str, str] = ("heads", "kv_heads"),
) -> jax.Array:
    """Grouped-query attention, softmax in float32.

    Args:
      q: [B, T, heads, head_dim].
      k, v: [B, S, kv_heads, head_dim]; query head n reads kv head n // (heads // kv_heads).
      visible: of `causal`, `within_segments` or `everything`, or bool[B, T, S].
      axes: the logical names of the head axes of q and of k and v.

    Returns:
      [B, T, heads, head_dim] in the dtype of v. Rows that see nothing are finite and meaningless.
    """
    fused: Callable[..., jax.Array]
    if isinstance(visible, splash.Segments | splash.Pairs):

        def fused_splash(
            q: jax.Array, k: jax.Array, v: jax.Array, visible: splash.Segments | splash.Pairs
        ) -> jax.Array:
            return splash.attention(q, k, v, visible, interpret=platform() != "tpu")

        fused = fused_splash
    elif isinstance(visible, BlockMask):
        on_cpu = implementation(k.dtype, q.shape[1]) == "blocks"
        fused = (
            blocks.attention
            if on_cpu
            else functools.partial(flash.attention, interpret=platform() != "gpu")
        )
    else:
        return blocks.dense(q, k, v, visible)

    heads, kv_heads = axes
    if not is_divisible(k.shape[2], kv_heads):
        # A device that holds all kv heads but few query heads could not tell which belong together.
        k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
        kv_heads = heads
    return per_device(
        fused,
        (q, ("batch", "length", heads, "head_dim")),
        (k, ("batch", "length", kv_heads, "head_dim")),
        (v, ("batch", "length", kv_heads, "head_dim")),
        (visible, ("batch",)),
        out=("batch", "length", heads, "head_dim"),
    )
