"""Continuations scored as suffixes on one shared prompt: images and prompt are encoded once."""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from mmsrec_jax.inference.sampler import last_slots, next_positions
from mmsrec_jax.models import token_logprobs
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.mllm import MLLM


def append_suffixes(batch: Batch, tokens: jax.Array, lengths: jax.Array) -> Batch:
    """Rows of `batch` (one prompt each, right-padded) followed by C suffixes.

    tokens: int32[B, C, T]; lengths: int32[B, C]. -> a batch of length L + C * (T + 1).

    Every suffix opens with a copy of the prompt's last token, which leaves the prefix, so that a
    suffix's first token is predicted from inside the suffix as every other token is.
    """
    batch = jax.tree.map(jnp.asarray, batch)
    rows = batch.tokens.shape[0]
    _, suffixes, steps = tokens.shape
    chex.assert_shape(tokens, (rows, suffixes, steps))
    chex.assert_shape(lengths, (rows, suffixes))
    at = jnp.arange(rows)
    last = last_slots(batch)
    position = next_positions(batch) - 1
    moved = batch.tokens[at, last]
    inside = jnp.arange(steps + 1) <= lengths[..., None]
    shape = (rows, suffixes, steps + 1)
    opened = jnp.concatenate(
        [jnp.broadcast_to(moved[:, None, None], (rows, suffixes, 1)), tokens], axis=-1
    )
    positions = jnp.broadcast_to(
        (position[:, None] + jnp.arange(steps + 1))[:, None, None], (rows, 3, *shape[1:])
    )
    segment = batch.segment_ids[at, last]
    ids = jnp.broadcast_to(jnp.arange(1, suffixes + 1)[None, :, None], shape)

    def join(prefix: jax.Array, tail: jax.Array) -> jax.Array:
        return jnp.concatenate([prefix, tail.reshape(rows, -1).astype(jnp.int32)], axis=1)

    return dataclasses.replace(
        batch,
        tokens=join(batch.tokens, jnp.where(inside, opened, 0)),
        positions=jnp.concatenate(
            [batch.positions, positions.reshape(rows, 3, -1).astype(jnp.int32)], axis=2
        ),
        segment_ids=join(
            batch.segment_ids.at[at, last].set(0),
            jnp.where(inside, segment[:, None, None], 0),
        ),
        suffix_ids=join(jnp.zeros_like(batch.tokens), ids),
    )


def suffix_logprobs(
    model: MLLM,
    batch: Batch,
    tokens: jax.Array,
    lengths: jax.Array,
    *,
    adapters: bool = True,
) -> jax.Array:
    """float32[B, C, T]: log p(tokens[b, c, t] | prompt b, tokens[b, c, :t]), 0 past `lengths`.

    One forward of length L + C * (T + 1); only the suffixes are unembedded, in chunks.
    """
    rows, slots = batch.tokens.shape
    _, suffixes, steps = tokens.shape
    joined = append_suffixes(batch, tokens, lengths)
    hidden = model(joined, adapters=adapters)[:, slots:]
    scores = token_logprobs.token_logprobs(model, hidden, joined.tokens[:, slots:])
    scores = scores.reshape(rows, suffixes, steps + 1)[..., 1:]
    return jnp.where(jnp.arange(steps) < lengths[..., None], scores, 0.0)
