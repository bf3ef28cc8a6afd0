"""The arithmetic of GRPO (Shao et al. 2024, DeepSeekMath): pure functions on arrays."""

import chex
import jax
import jax.numpy as jnp

LOG_RATIO_LIMIT = 20.0  # exp(20) is finite in float32 and far outside any trust region


def group_advantages(rewards: jax.Array, *, scale_by_std: bool) -> jax.Array:
    """(r - mean) / (std + 1e-6) within a group, ddof=1; without std: r - mean.

    rewards: float32[B, G], G >= 2. -> float32[B, G].
    """
    chex.assert_rank(rewards, 2)
    centered = rewards - jnp.mean(rewards, axis=-1, keepdims=True)
    if not scale_by_std:
        return centered
    return centered / (jnp.std(rewards, axis=-1, keepdims=True, ddof=1) + 1e-6)


def log_ratio(new: jax.Array, old: jax.Array) -> jax.Array:
    """new - old, clamped to +-20."""
    return jnp.clip(new - old, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def kl_k3(new: jax.Array, reference: jax.Array) -> jax.Array:
    """Schulman's k3 estimate of KL(policy || reference) per token: exp(d) - d - 1 >= 0, with
    d = reference - new, clamped."""
    difference = log_ratio(reference, new)
    return jnp.exp(difference) - difference - 1.0


def policy_loss(
    new: jax.Array,
    old: jax.Array,
    reference: jax.Array,
    advantages: jax.Array,
    lengths: jax.Array,
    *,
    clip_epsilon: float,
    kl_coef: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The clipped surrogate plus `kl_coef` times k3, averaged over each completion's tokens, then
    over completions -> (loss, metrics), scalars.

    The mean over completions makes micro-batches of whole groups add up to the full batch.

    Args:
      new, old, reference: float32[B, G, T], log-probabilities of the tokens by the model that is
        trained, by the model that drew them, and by the reference.
      advantages: float32[B, G].
      lengths: int32[B, G], tokens of each completion.
      clip_epsilon: the ratio new / old has no gradient outside 1 +- this, in the direction that the
        advantage favors.
      kl_coef: weight of the divergence.
    """
    chex.assert_equal_shape([new, old, reference])
    chex.assert_shape([advantages, lengths], new.shape[:2])
    inside = jnp.arange(new.shape[-1]) < lengths[..., None]
    weights = inside / (jnp.maximum(lengths, 1)[..., None] * lengths.size)

    def mean(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(inside, values, 0.0) * weights)

    ratio = jnp.exp(log_ratio(new, old))
    advantages = advantages[..., None]
    surrogate = ratio * advantages
    clipped = jnp.clip(ratio, 1.0 - clip_epsilon, 1.0 + clip_epsilon) * advantages
    divergence = mean(kl_k3(new, reference))
    loss = mean(-jnp.minimum(surrogate, clipped)) + kl_coef * divergence
    return loss, {
        "kl": divergence,
        "clip_fraction": mean((clipped < surrogate).astype(jnp.float32)),
        "logprob_gap": mean(jnp.abs(new - old)),
    }
