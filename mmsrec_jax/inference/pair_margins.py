"""Scores of users and items that were read apart (*ours*)."""

import jax
import jax.numpy as jnp

from mmsrec_jax.inference.yes_no import margins_after
from mmsrec_jax.models.late_interaction import Encoded, Tail, read_pairs
from mmsrec_jax.models.mllm import MLLM


def pair_margins(
    model: MLLM,
    users: Encoded,
    items: Encoded,
    tail: Tail,
    *,
    yes_no_ids: tuple[int, int],
    closeness: float,
) -> jax.Array:
    """float32[B, M]: logit(yes) - logit(no) after the tail of every pair, and `closeness` times the
    cosine of where the user's prompt and the item end.

    The cosine is what two towers learn quickly; the tail, which reads both, corrects it. With 0 it
    is the margin alone; without a tail the cosine is.
    """
    found = closeness * cosines(users.end, items.end)
    if len(tail.tokens):
        found += margins_after(model, read_pairs(model, users, items, tail), yes_no_ids)
    return found


def cosines(users: jax.Array, items: jax.Array) -> jax.Array:
    """float32[B, M], of hidden states [B, hidden] and [M, hidden]."""
    users, items = (_unit(rows.astype(jnp.float32)) for rows in (users, items))
    return jnp.einsum("bd,md->bm", users, items, precision=jax.lax.Precision.HIGHEST)


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)
