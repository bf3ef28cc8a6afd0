"""Attention of the decoder and the vision tower.

Who sees whom is decided once per forward pass (`visibility`), outside of the layer scan, and handed
to `attention` of every layer.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmsrec_jax.models.layers import precision

MASKED = -1e30  # finite: a row that sees nothing (padding) averages instead of giving NaN


class Layout(NamedTuple):
    """Where tokens stand. Each int32[B, L].

    segment_ids: 0 padding, 1.. examples packed in the row.
    branch_ids: 0 trunk, c >= 1 branch c of the segment.
    slots: order for the causal rule.
    """

    segment_ids: jax.Array
    branch_ids: jax.Array
    slots: jax.Array


def same_segment(query: jax.Array, key: jax.Array) -> jax.Array:
    """bool[B, T, S]: segments query int32[B, T] and key int32[B, S] are equal and not padding."""
    return (query[:, :, None] == key[:, None, :]) & (query[:, :, None] > 0)


def visibility(query: Layout, key: Layout) -> jax.Array:
    """bool[B, T, S]: same segment, at or before the query, in the trunk or the same branch."""
    branch = key.branch_ids[:, None, :]
    return (
        same_segment(query.segment_ids, key.segment_ids)
        & (key.slots[:, None, :] <= query.slots[:, :, None])
        & ((branch == 0) | (branch == query.branch_ids[:, :, None]))
    )


def attention(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    """Grouped-query attention, softmax in float32.

    Args:
      q: [B, T, heads, head_dim].
      k, v: [B, S, kv_heads, head_dim]; query head n reads kv head n // (heads // kv_heads).
      visible: bool[B, T, S].

    Returns:
      [B, T, heads, head_dim] in the dtype of v. Rows that see nothing are finite and meaningless.
    """
    *rows, heads, head_dim = q.shape
    q = q.reshape(*rows, k.shape[2], heads // k.shape[2], head_dim) * head_dim**-0.5
    scores = jnp.einsum(
        "btkgh,bskh->bktgs",
        q.astype(k.dtype),
        k,
        precision=precision(k.dtype),
        preferred_element_type=jnp.float32,
    )
    scores = jnp.where(visible[:, None, :, None, :], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bktgs,bskh->btkgh", weights, v, precision=precision(v.dtype))
    return out.reshape(*rows, heads, head_dim)
