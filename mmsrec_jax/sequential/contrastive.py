"""Contrast between the states of one batch: InfoNCE with cosine similarity."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmsrec_jax.sequential.base import Rows


class Positions(NamedTuple):
    """Drawn positions of packed rows; every array has one entry per position, int32[N].

    at: index into the flattened [B, L]; known: bool, False where a batch has too few targets;
    targets: the next item; sequences: which sequence of which row.
    """

    at: jax.Array
    known: jax.Array
    targets: jax.Array
    sequences: jax.Array

    def of(self, states: jax.Array) -> jax.Array:
        """Their states, float[N, D] of float[B, L, D]."""
        return states.reshape(-1, states.shape[-1])[self.at]

    @property
    def other_sequences(self) -> jax.Array:
        """Bool[N, N]: [i, j] whether position j is known and of another sequence than i."""
        return self.known & (self.sequences[:, None] != self.sequences)

    @property
    def other_targets(self) -> jax.Array:
        """Bool[N, N]: [i, j] whether position j is known and has another target than i."""
        return self.known & (self.targets[:, None] != self.targets)


def draw_positions(rows: Rows, count: int, key: jax.Array) -> Positions:
    """At most `count` positions with a target, uniformly without replacement (*ours*).

    The papers contrast the users of a batch, one prefix each. A packed row holds every prefix of
    its sequences; all of them against all would be a matrix too large.
    """
    targets = rows.targets.reshape(-1)
    drawn = jax.random.bits(key, targets.shape, jnp.uint32) >> 1
    order = jnp.where(targets >= 0, drawn.astype(jnp.int32), -1)
    at = jax.lax.top_k(order, min(count, len(targets)))[1]
    batch, length = rows.ids.shape
    row = jnp.arange(batch)[:, None] * (length + 1)
    return Positions(at, targets[at] >= 0, targets[at], (row + rows.segments).reshape(-1)[at])


def info_nce(
    queries: jax.Array, keys: jax.Array, rivals: jax.Array, known: jax.Array, temperature: float
) -> jax.Array:
    """Mean nats of telling each query's own key from its rivals, scalar.

    queries, keys float[N, D], query i belongs to key i; rivals bool[N, N], [i, j] whether key j
    competes for query i (the own key always does); known bool[N], the queries that count.
    -log of exp(cos(q_i, k_i) / t) / (exp(cos(q_i, k_i) / t) + sum over rivals j of exp(cos(q_i,
    k_j) / t)), t the temperature.
    """
    cosines = _unit(queries) @ _unit(keys).T / temperature
    competes = rivals | jnp.eye(len(queries), dtype=bool)
    nats = jax.nn.logsumexp(jnp.where(competes, cosines, -jnp.inf), -1) - jnp.diagonal(cosines)
    return jnp.where(known, nats, 0).sum() / jnp.maximum(known.sum(), 1)


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-12))
