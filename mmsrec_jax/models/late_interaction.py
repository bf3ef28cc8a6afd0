"""Users and items read apart, and brought together by the last tokens of a prompt (*ours*).

The prompt of a user sees itself, an item sees itself, and the tail, the last tokens of what is said
of an item, sees both and itself. Prompts end and items begin at one position, the same for all: so
keys and values of an item fit every user, and a pair costs its tail alone. As in late interaction
(ColBERT, arXiv 2004.12832) and in Prompt Cache (arXiv 2311.04934), but for a model that is trained
under this mask: nothing is approximate.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmsrec_jax.models import rope
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.blocks import MASKED
from mmsrec_jax.models.layers import Block, precision, scan_layers
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime.sharding import constrain


class Encoded(NamedTuple):
    """What the tails of prompts read of N rows.

    k, v: [layers, N, L, kv_heads, head_dim], rotated at their positions.
    there: bool[N, L], False for padding.
    end: [N, hidden], the mean of the final-normed hidden states of `Batch.ends`.
    """

    k: jax.Array
    v: jax.Array
    there: jax.Array
    end: jax.Array

    def without_tokens(self) -> "Encoded":
        """What the ends alone are read of."""
        return self._replace(k=self.k[:, :, :0], v=self.v[:, :, :0], there=self.there[:, :0])


class Tail(NamedTuple):
    """The last tokens of what is said of an item, the same r for all.

    tokens: int32[r].
    positions: int32[M], where it begins.
    """

    tokens: jax.Array
    positions: jax.Array


def encode(model: MLLM, batch: Batch, *, adapters: bool = True) -> Encoded:
    """Prompts of users or items, one a row; what they do not see of each other is not computed."""
    return encode_with_states(model, batch, adapters=adapters)[0]


def encode_with_states(
    model: MLLM, batch: Batch, *, adapters: bool = True
) -> tuple[Encoded, jax.Array]:
    """`encode`, and the final-normed hidden states [N, L, hidden]."""
    k, v, hidden = model.keys_values(batch, adapters=adapters, states=True)
    assert hidden is not None
    there = batch.segment_ids > 0
    ends = batch.ends
    if ends is None:
        ends = jnp.maximum(jnp.sum(there, axis=1, keepdims=True) - 1, 0)
    end = jnp.mean(jnp.take_along_axis(hidden, ends[..., None], axis=1), axis=1)
    return Encoded(k, v, there, end), hidden


def read_pairs(
    model: MLLM, users: Encoded, items: Encoded, tail: Tail, *, adapters: bool = True
) -> jax.Array:
    """Final-normed hidden states of the tails' last token for every pair: [B, M, hidden].

    Costs B * M * r tokens; attention to a user's prompt and to an item are dense products, merged
    by the logarithms of their sums.

    Args:
      users: of B prompts.
      items: of M items, each of which meets every user.
    """
    rows, length = users.there.shape[0], tail.tokens.shape[0]
    tokens = jnp.broadcast_to(tail.tokens, (rows, len(tail.positions), length))
    positions = tail.positions[:, None] + jnp.arange(length)
    return _read(model, users, items, tokens, positions, adapters)[:, :, -1]


def continue_prompts(
    model: MLLM, users: Encoded, tokens: jax.Array, start: int, *, adapters: bool = True
) -> jax.Array:
    """Final-normed hidden states [B, T, hidden] of text after the users' prompts.

    tokens: int32[B, T]; they see the prompt and what is before them, and begin at position `start`.
    """
    positions = start + jnp.arange(tokens.shape[1])[None]
    return _read(model, users, None, tokens[:, None], positions, adapters)[:, 0]


def _read(
    model: MLLM,
    users: Encoded,
    items: Encoded | None,
    tokens: jax.Array,
    positions: jax.Array,
    adapters: bool,
) -> jax.Array:
    """Hidden states [B, M, r, hidden] of tokens int32[B, M, r] at positions int32[M, r]."""
    text, config = model.text, model.config.text
    rows, count, length = tokens.shape
    groups = config.heads // config.kv_heads
    table = rope.text(jnp.broadcast_to(positions.ravel(), (1, 3, positions.size)), config)
    x = text.embed(tokens.reshape(rows, -1))
    at_or_before = jnp.tril(jnp.ones((length, length), bool))[:, None]

    def layer(block: Block, x: jax.Array, kept: Any) -> jax.Array:
        user_k, user_v, item_k, item_v = kept
        q, k, v = block.project(x, table, adapters)
        q = q.reshape(rows, count, length, config.kv_heads, groups, -1) * config.head_dim**-0.5
        k, v = (a.reshape(rows, count, length, config.kv_heads, -1) for a in (k, v))
        parts = [
            _part(q, user_k, user_v, _keys(users.there), "bskd", "bkmrgs"),
            _part(q, k, v, at_or_before, "bmskd", "bmkrgs"),
        ]
        if items is not None:
            parts.append(_part(q, item_k, item_v, _keys(items.there), "mskd", "mkbrgs"))
        attended = _merged(parts).astype(v.dtype)
        return block.finish(x, attended.reshape(rows, count * length, config.heads, -1), adapters)

    kept = users.k, users.v, *((None, None) if items is None else (items.k, items.v))
    x = scan_layers(text.layers, layer, x, kept, remat=text.remat)
    x = text.norm(constrain(x, "batch", "length", "features"))
    return x.reshape(rows, count, length, -1)


def _keys(there: jax.Array) -> jax.Array:
    """bool[N, L] for scores that have four more axes before the last."""
    return jnp.expand_dims(there, (1, 2, 3, 4))


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
