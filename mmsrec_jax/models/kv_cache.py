"""Key-value cache of the decoder: slots are written in order, right-padded prompts leave holes."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mmsrec_jax.models.config import MLLMConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """What the decoder remembers of B rows of S slots.

    k, v: [layers, B, S, kv_heads, head_dim].
    segment_ids, suffix_ids: int32[B, S]; segment 0 is an empty slot or padding.
    length: int32[], the next slot to write, the same for all rows.
    """

    k: jax.Array
    v: jax.Array
    segment_ids: jax.Array
    suffix_ids: jax.Array
    length: jax.Array


def init(config: MLLMConfig, batch: int, slots: int, dtype: DTypeLike) -> KVCache:
    """Empty cache for `batch` rows of `slots` tokens; the caller sizes it for prompt and answer."""
    text = config.text
    shape = (text.layers, batch, slots, text.kv_heads, text.head_dim)
    ids = jnp.zeros((batch, slots), jnp.int32)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), ids, ids, jnp.int32(0))


def repeat(cache: KVCache, n: int) -> KVCache:
    """Every row n times, copies adjacent: row b becomes rows b * n ... b * n + n - 1."""
    return KVCache(
        k=jnp.repeat(cache.k, n, axis=1),
        v=jnp.repeat(cache.v, n, axis=1),
        segment_ids=jnp.repeat(cache.segment_ids, n, axis=0),
        suffix_ids=jnp.repeat(cache.suffix_ids, n, axis=0),
        length=cache.length,
    )


def extend(cache: KVCache, segment_ids: jax.Array, suffix_ids: jax.Array) -> KVCache:
    """Claims the next T slots for tokens with ids int32[B, T]; k and v are still to be written.

    Raises:
      ValueError: when T exceeds the cache. Running over after several calls cannot be seen here:
        XLA would overwrite the last slots.
    """
    tokens, slots = segment_ids.shape[1], cache.segment_ids.shape[1]
    if tokens > slots:
        raise ValueError(f"{tokens} tokens do not fit a cache of {slots} slots")
    start = (0, cache.length)
    return dataclasses.replace(
        cache,
        segment_ids=jax.lax.dynamic_update_slice(cache.segment_ids, segment_ids, start),
        suffix_ids=jax.lax.dynamic_update_slice(cache.suffix_ids, suffix_ids, start),
        length=cache.length + tokens,
    )


def write(
    stack: jax.Array, layer: jax.Array, slot: jax.Array, new: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Writes new [B, T, kv_heads, head_dim] of one layer from `slot` on.

    Returns the stack [layers, B, S, kv_heads, head_dim] and its layer [B, S, kv_heads, head_dim].
    """
    start = (layer, 0, slot, 0, 0)
    stack = jax.lax.dynamic_update_slice(stack, new[None].astype(stack.dtype), start)
    return stack, jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False)
