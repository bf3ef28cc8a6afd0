"""Users and items read apart, and brought together by the last tokens of a prompt (*ours*).

The prompt of a user sees itself, an item sees itself, and the tail, the last tokens of what is said
of an item, sees both and itself. Prompts end and items begin at one position, the same for all: so
keys and values of an item fit every user, and a pair costs its tail alone. As in late interaction
(ColBERT, arXiv 2004.12832) and in Prompt Cache (arXiv 2311.04934), but for a model that is trained
under this mask: nothing is approximate.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmsrec_jax.models import rope
from mmsrec_jax.models.attention import MASKED
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.layers import Block, precision, scan_layers
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime.sharding import constrain


class Encoded(NamedTuple):
    """What the tails of prompts read of N rows.

    k, v: [layers, N, L, kv_heads, head_dim], rotated at their positions.
    there: bool[N, L], False for padding.
    """

    k: jax.Array
    v: jax.Array
    there: jax.Array


class Tail(NamedTuple):
    """The last tokens of what is said of an item, the same r for all.

    tokens: int32[r].
    positions: int32[M], or int32[B, C] for candidates of their own, where it begins.
    """

    tokens: jax.Array
    positions: jax.Array


def encode(model: MLLM, batch: Batch, *, adapters: bool = True) -> Encoded:
    """Prompts of users or items, one a row; what they do not see of each other is not computed."""
    k, v = model.keys_values(batch, adapters=adapters)
    return Encoded(k, v, batch.segment_ids > 0)


def read_pairs(
    model: MLLM, users: Encoded, items: Encoded, tail: Tail, *, adapters: bool = True
) -> jax.Array:
    """Final-normed hidden states of the tails' last token for every pair: [B, M, hidden].

    Costs B * M * r tokens; attention to a user's prompt and to an item are dense products, merged
    by the logarithms of their sums.

    Args:
      users: of B prompts.
      items: of M items, each of which meets every user; or, with arrays [layers, B, C, L, ...] and
        bool[B, C, L], of C candidates of each user (then M is C).
    """
    text, config = model.text, model.config.text
    rows, length = users.there.shape[0], tail.tokens.shape[0]
    own = tail.positions.ndim == 2
    count = tail.positions.shape[-1]
    groups = config.heads // config.kv_heads
    at = (tail.positions[..., None] + jnp.arange(length)).reshape(rows if own else 1, 1, -1)
    table = rope.text(jnp.broadcast_to(at, (at.shape[0], 3, at.shape[2])), config)
    x = text.embed(jnp.broadcast_to(jnp.tile(tail.tokens, count), (rows, count * length)))
    of_items = "bmskd" if own else "mskd"
    at_or_before = jnp.tril(jnp.ones((length, length), bool))
    seen = items.there[:, :, None, None, None] if own else items.there[:, None, None, None, None]

    def layer(block: Block, x: jax.Array, kept: tuple[jax.Array, ...]) -> jax.Array:
        user_k, user_v, item_k, item_v = kept
        q, k, v = block.project(x, table, adapters)
        q = q.reshape(rows, count, length, config.kv_heads, groups, -1) * config.head_dim**-0.5
        k, v = (a.reshape(rows, count, length, config.kv_heads, -1) for a in (k, v))
        parts = [
            _part(q, user_k, user_v, users.there[:, None, None, None, None], "bskd", "bkmrgs"),
            _part(q, item_k, item_v, seen, of_items, "bmkrgs" if own else "mkbrgs"),
            _part(q, k, v, at_or_before[:, None], "bmskd", "bmkrgs"),
        ]
        attended = _merged(parts).astype(v.dtype)
        return block.finish(x, attended.reshape(rows, count * length, config.heads, -1), adapters)

    kept = users.k, users.v, items.k, items.v
    x = scan_layers(text.layers, layer, x, kept, remat=text.remat)
    x = x.reshape(rows, count, length, -1)[:, :, -1]
    return text.norm(constrain(x, "batch", "length", "features"))


_Part = tuple[jax.Array, jax.Array, jax.Array]


def _part(
    q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array, keys: str, scores: str
) -> _Part:
    """Attention of q [B, M, r, kv_heads, groups, head_dim] to some of the keys, float32: what it
    reads, not divided, [like q]; largest score and sum of the weights, [like q without head_dim].

    seen: for the scores; keys, scores: axes of these arrays for `einsum`.
    """
    exact = {"precision": precision(k.dtype), "preferred_element_type": jnp.float32}
    found = jnp.einsum(f"bmrkgd,{keys}->{scores}", q.astype(k.dtype), k, **exact)
    found = jnp.where(seen, found, MASKED)
    top = jax.lax.stop_gradient(jnp.max(found, axis=-1))
    weights = jnp.exp(found - top[..., None])
    out = jnp.einsum(f"{scores},{keys}->bmrkgd", weights.astype(v.dtype), v, **exact)
    order = f"{scores[:-1]}->bmrkg"
    return out, jnp.einsum(order, top), jnp.einsum(order, jnp.sum(weights, axis=-1))


def _merged(parts: list[_Part]) -> jax.Array:
    """One softmax over the keys of all parts."""
    top = jnp.max(jnp.stack([top for _, top, _ in parts]), axis=0)
    shares = [jnp.exp(own - top) for _, own, _ in parts]
    total = sum(share * total for share, (_, _, total) in zip(shares, parts, strict=True))
    out = sum(share[..., None] * out for share, (out, _, _) in zip(shares, parts, strict=True))
    return out / jnp.expand_dims(jnp.asarray(total), -1)
