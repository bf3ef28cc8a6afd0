"""How the states of a model are trained to predict items: full softmax, sampled softmax, BCE."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.sharding import num_batch_shards, per_device

SOFTMAX, SAMPLED_SOFTMAX, BCE = "softmax", "sampled_softmax", "bce"


@dataclasses.dataclass(frozen=True)
class ItemLoss:
    """Mean loss of the targets, in nats.

    kind: "softmax" over the catalog; "sampled_softmax" over the target and `negatives` uniform
    items, drawn once a batch; "bce" with one uniform negative a target, as in the original SASRec.
    chunk: targets whose logits over the catalog a device holds at once ("softmax").
    """

    kind: str
    negatives: int = 256
    chunk: int = 4096

    def __post_init__(self) -> None:
        if self.kind not in (SOFTMAX, SAMPLED_SOFTMAX, BCE):
            raise UserError(f"loss={self.kind!r} is none of {SOFTMAX}, {SAMPLED_SOFTMAX}, {BCE}")
        if self.kind == SAMPLED_SOFTMAX and self.negatives < 1:
            raise UserError(f"loss={SAMPLED_SOFTMAX!r} needs negatives of 1 or more")

    def __call__(
        self,
        hidden: jax.Array,
        table: jax.Array,
        targets: jax.Array,
        key: jax.Array,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """Scalar mean over the targets that are not negative.

        hidden float[..., D]; table float[V, D]; targets int32[...] (rows of the table); key draws
        the negatives; bias float[V] is added to the logits.
        """
        targets = targets.reshape(-1)
        hidden = hidden.reshape(len(targets), -1)
        if bias is not None:
            hidden = jnp.concatenate([hidden, jnp.ones_like(hidden[:, :1])], 1)
            table = jnp.concatenate([table, bias[:, None].astype(table.dtype)], 1)
        if self.kind == SOFTMAX:
            nats = token_nll(hidden, table, targets, chunk=self.chunk)
        elif self.kind == SAMPLED_SOFTMAX:
            nats = sampled_nll(hidden, table, targets, key, negatives=self.negatives)
        else:
            nats = binary_nll(hidden, table, targets, key)
        return nats.sum() / jnp.maximum((targets >= 0).sum(), 1)


def logits_bytes(chunk: int, tokens: int, items: int, shards: int) -> int:
    """What a device needs for the logits of `token_nll` and for their gradient: two float32 arrays
    that are there at once in the backward pass."""
    return 2 * 4 * min(chunk, -(-tokens // shards)) * items


def token_nll(hidden: jax.Array, table: jax.Array, targets: jax.Array, *, chunk: int) -> jax.Array:
    """Full-softmax negative log-likelihood, float32[N] in nats.

    hidden float[N, D], table float[V, D], targets int32[N] (rows of the table; negative = 0 nats).
    Works on `chunk` tokens at a time and recomputes their logits in the backward pass, so the
    largest array is float32[chunk, V]. With a mesh (`jax.set_mesh`) each device has its own part of
    the tokens and walks over it alone: the gradient of the table is summed over devices once, and
    not for each chunk. Tokens with a target come first, so that chunks of others cost nothing.
    """
    count = len(targets)
    pad = -count % num_batch_shards()
    nats = per_device(
        functools.partial(_nll_of_part, chunk=chunk),
        (jnp.pad(targets, (0, pad), constant_values=-1), ("batch",)),
        (jnp.pad(hidden, ((0, pad), (0, 0))), ("batch", None)),
        (table, (None, None)),
        out=("batch",),
    )
    return nats[:count]


def _nll_of_part(
    targets: jax.Array, hidden: jax.Array, table: jax.Array, *, chunk: int
) -> jax.Array:
    """`token_nll` of the tokens of one device."""

    def nll(h: jax.Array, t: jax.Array) -> jax.Array:
        logits = _dots(h, table)
        picked = jnp.take_along_axis(logits, jnp.maximum(t, 0)[:, None], 1)[:, 0]
        return jnp.where(t >= 0, jax.nn.logsumexp(logits, -1) - picked, 0.0)

    @jax.checkpoint
    def body(carry: None, xs: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        h, t = xs
        return carry, jax.lax.cond((t >= 0).any(), nll, lambda h, t: jnp.zeros(len(t)), h, t)

    count = len(targets)
    if count <= chunk:
        return body(None, (hidden, targets))[1]
    order = jnp.argsort(targets < 0, stable=True)
    pad = -count % chunk
    chunks = (
        jnp.pad(hidden[order], ((0, pad), (0, 0))).reshape(-1, chunk, hidden.shape[1]),
        jnp.pad(targets[order], (0, pad), constant_values=-1).reshape(-1, chunk),
    )
    _, nats = jax.lax.scan(body, None, chunks)
    return nats.reshape(-1)[jnp.argsort(order)]


def sampled_nll(
    hidden: jax.Array, table: jax.Array, targets: jax.Array, key: jax.Array, *, negatives: int
) -> jax.Array:
    """Softmax over the target and uniform negatives that all tokens share: float32[N] in nats.

    A negative that is a token's own target does not count for it. What is left stands for the other
    V - 1 items: the sum over m negatives is scaled by (V - 1) / m, the correction that importance
    sampling asks of a uniform proposal. With as many negatives as items it is the full softmax.
    Shapes as in `token_nll`; the largest array is float32[N, negatives].
    """
    items = table.shape[0]
    if negatives >= items:
        drawn = jnp.arange(items)
    else:
        drawn = jax.random.randint(key, (negatives,), 0, items)
    wanted = jnp.maximum(targets, 0)
    own = jnp.sum(hidden * table[wanted], -1, dtype=jnp.float32)
    counts = drawn[None] != wanted[:, None]
    others = jnp.where(counts, _dots(hidden, table[drawn]), -jnp.inf)
    scale = jnp.log((items - 1) / jnp.maximum(counts.sum(1), 1))
    every = jnp.concatenate([own[:, None], others + scale[:, None]], 1)
    return jnp.where(targets >= 0, jax.nn.logsumexp(every, -1) - own, 0.0)


def binary_nll(
    hidden: jax.Array, table: jax.Array, targets: jax.Array, key: jax.Array
) -> jax.Array:
    """-log s(target) - log(1 - s(negative)), s the logistic function: float32[N] in nats.

    One negative a token (Kang & McAuley 2018), uniform over the items but its target; the user's
    other items are not left out (*ours*: among thousands of items they are rare). Shapes as in
    `token_nll`.
    """
    wanted = jnp.maximum(targets, 0)
    drawn = jax.random.randint(key, wanted.shape, 0, max(table.shape[0] - 1, 1))
    drawn = drawn + (drawn >= wanted)
    own, other = (jnp.sum(hidden * table[at], -1, dtype=jnp.float32) for at in (wanted, drawn))
    return jnp.where(targets >= 0, jax.nn.softplus(-own) + jax.nn.softplus(other), 0.0)


def _dots(hidden: jax.Array, table: jax.Array) -> jax.Array:
    return jnp.einsum("td,vd->tv", hidden, table, preferred_element_type=jnp.float32)
