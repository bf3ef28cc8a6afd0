"""Log-probabilities of tokens without ever holding the logits of a batch."""

import jax
import jax.numpy as jnp

from mmsrec_jax.models.decoder import unembed
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime.sharding import constrain, is_divisible, num_batch_shards, weight


def token_logprobs(
    model: MLLM, hidden: jax.Array, tokens: jax.Array, *, chunk: int = 1024
) -> jax.Array:
    """log p(tokens[b, t] | hidden[b, t - 1]), 0 at t = 0: `next_logprobs` of whole rows.

    Args:
      hidden: [B, L, hidden] of `model`, final-normed.
      tokens: int32[B, L].

    Returns:
      float32[B, L], in nats.
    """
    found = next_logprobs(model, hidden[:, :-1], tokens[:, 1:], chunk=chunk)
    return jnp.pad(found, [(0, 0), (1, 0)])


def next_logprobs(
    model: MLLM, hidden: jax.Array, targets: jax.Array, *, chunk: int = 1024
) -> jax.Array:
    """log p(targets[b, t] | hidden[b, t]): the target is the token after the one of this state.

    The logits of about `chunk` tokens a device exist at a time, in the backward pass too
    (rematerialized).

    Args:
      hidden: [B, T, hidden] of `model`, final-normed.
      targets: int32[B, T].

    Returns:
      float32[B, T], in nats.
    """
    batch, steps = targets.shape
    if steps == 0:
        return jnp.zeros((batch, steps), jnp.float32)
    shards = num_batch_shards() if is_divisible(batch, "batch") else 1
    columns = max(1, chunk * shards // batch)  # whole columns keep the batch sharded
    count = -(-steps // columns)
    width = -(-steps // count)

    def chunks(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, count * width - steps)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, count, width, *x.shape[2:]), 1, 0)

    kernel = model.text.head_kernel()  # gathered once, not per chunk

    @jax.checkpoint
    def logprobs(hidden: jax.Array, targets: jax.Array) -> jax.Array:
        logits = unembed(hidden, weight(kernel, ("embed", "vocab")))
        logits = constrain(logits, "batch", "length", "vocab")
        chosen = jnp.arange(logits.shape[-1]) == targets[..., None]
        return jnp.sum(jnp.where(chosen, logits, 0), axis=-1) - jax.nn.logsumexp(logits, axis=-1)

    out = jax.lax.map(lambda x: logprobs(*x), (chunks(hidden), chunks(targets)))
    return jnp.moveaxis(out, 0, 1).reshape(batch, count * width)[:, :steps]
