"""Which blocks of an attention hold a visible pair of tokens, from ids of the tokens (*ours*).

What FlexAttention calls a block mask (arXiv 2412.05496), made without a mask of token pairs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# A program of a kernel keeps KEPT tokens of one side in registers and streams those of the other.
KEPT, STREAMED = 128, 64
TILE = 16  # visibility is first decided for tiles of this many tokens; divides both
_NONE_BELOW, _NONE_ABOVE = -1, 2**31 - 1  # bounds of a tile of padding: an empty range


class Tokens(NamedTuple):
    """What the kernels compare, each int32[B, L].

    A query sees a key whose `group` is its own `group` or its `shared`, and whose slot is not
    behind its own.

    group: one number for segment and suffix; negative for padding.
    shared: that of the prefix of the same segment; None without suffixes.
    slots: None without the causal rule.
    """

    group: jax.Array
    shared: jax.Array | None
    slots: jax.Array | None


class BlockList(NamedTuple):
    """For each block of one side, the blocks of the other that it visits.

    indices: int32[B, blocks, others]; those to visit first, of these the full ones first.
    full: int32[B, blocks], how many hold visible pairs only.
    visited: int32[B, blocks], how many may hold one.
    """

    indices: jax.Array
    full: jax.Array
    visited: jax.Array


class BlockMask(NamedTuple):
    """Who sees whom, padded to blocks; every leaf has the batch first."""

    queries: Tokens
    keys: Tokens
    of_queries: BlockList
    of_keys: BlockList


def tokens(
    segment_ids: jax.Array,
    suffix_ids: jax.Array | None,
    slots: jax.Array | None,
    *,
    queries: bool,
) -> Tokens:
    """From ids int32[B, L] of a `Layout`, with suffixes below 2**15; segment 0 is padding.

    Padding of queries and padding of keys differ, so that they do not see each other.
    """
    group, shared = segment_ids, None
    padding = -1 if queries else -2
    if suffix_ids is not None:
        group, shared = segment_ids * 2**15 + suffix_ids, segment_ids * 2**15
        shared = jnp.where(segment_ids > 0, shared, padding) if queries else None
    return Tokens(jnp.where(segment_ids > 0, group, padding), shared, slots)


def block_mask(queries: Tokens, keys: Tokens) -> BlockMask:
    """Made once per forward pass, outside of the layers.

    A tile counts as seen where the ranges of ids overlap: in rows packed in order these are few
    tiles more than necessary. What is seen inside of a block the kernels decide exactly.
    """
    queries, keys = (
        jax.tree.map(lambda x, fill=fill: padded(x, 1, fill), side)
        for side, fill in ((queries, -1), (keys, -2))
    )
    some, every = _tiles(queries, keys)
    transposed = (jnp.swapaxes(x, 1, 2) for x in (some, every))
    return BlockMask(queries, keys, _block_list(some, every), _block_list(*transposed))


def padded(x: jax.Array, axis: int, fill: int = 0) -> jax.Array:
    """x with its axis of tokens filled up to blocks."""
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, -x.shape[axis] % KEPT)
    return jnp.pad(x, pad, constant_values=fill)


class _Range(NamedTuple):
    """Bounds of the ids of each tile, padding left out; `whole`: there is none. [B, tiles]."""

    low: jax.Array
    high: jax.Array
    whole: jax.Array


def _ranges(ids: jax.Array, tokens: Tokens) -> _Range:
    real = (tokens.group >= 0).reshape(len(ids), -1, TILE)
    ids = ids.reshape(real.shape)
    low = jnp.where(real, ids, _NONE_ABOVE).min(2)
    return _Range(low, jnp.where(real, ids, _NONE_BELOW).max(2), real.all(2))


def _tiles(queries: Tokens, keys: Tokens) -> tuple[jax.Array, jax.Array]:
    """bool[B, T / TILE, S / TILE]: tiles that may hold a visible pair, tiles of nothing else."""

    def both(ids: jax.Array, key_ids: jax.Array) -> tuple[_Range, _Range]:
        rows, columns = _ranges(ids, queries), _ranges(key_ids, keys)
        return _Range(*(x[:, :, None] for x in rows)), _Range(*(x[:, None] for x in columns))

    own, other = both(queries.group, keys.group)
    some = (other.low <= own.high) & (own.low <= other.high)
    every = (other.high == own.low) & (own.high == other.low)  # so all four are equal
    if queries.shared is not None:
        own, other = both(queries.shared, keys.group)
        some |= (other.low <= own.high) & (own.low <= other.high)
        every |= (other.high == own.low) & (own.high == other.low)
    if queries.slots is not None and keys.slots is not None:
        own, other = both(queries.slots, keys.slots)
        some &= other.low <= own.high
        every &= other.high <= own.low
    return some, every & own.whole & other.whole


def _block_list(some: jax.Array, every: jax.Array) -> BlockList:
    rows, length, _ = some.shape
    shape = (rows, length * TILE // KEPT, KEPT // TILE, -1, STREAMED // TILE)
    visited = some.reshape(shape).any((2, 4))
    full = every.reshape(shape).all((2, 4))
    order = jnp.argsort(jnp.where(visited, jnp.where(full, 0, 1), 2), axis=2, stable=True)
    counts = (jnp.sum(x, axis=2, dtype=jnp.int32) for x in (full, visited))
    return BlockList(order.astype(jnp.int32), *counts)
