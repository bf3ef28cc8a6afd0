"""The arithmetic of GRPO (Shao et al. 2024, DeepSeekMath): pure functions on arrays."""

import jax
import jax.numpy as jnp

LOG_RATIO_LIMIT = 20.0  # exp(20) is finite in float32 and far outside any trust region


def group_advantages(rewards: jax.Array, *, scale_by_std: bool) -> jax.Array:
    """(r - mean) / (std + 1e-6) within each group of samples, ddof=1; without std: r - mean.

    rewards: float32[B, G], G >= 2.
    """
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
    clip: float,
    kl: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The clipped surrogate plus `kl` times k3, averaged over each completion's tokens, then over
    completions -> (loss, metrics), scalars.

    new, old, reference: float32[B, G, T], log-probs; advantages: float32[B, G];
    lengths: int32[B, G].
    The mean over completions makes micro-batches of whole groups add up to the full batch.
    """
    inside = jnp.arange(new.shape[-1]) < lengths[..., None]
    weights = inside / (jnp.maximum(lengths, 1)[..., None] * lengths.size)

    def mean(values):
        return jnp.sum(jnp.where(inside, values, 0.0) * weights)

    ratio = jnp.exp(log_ratio(new, old))
    advantages = advantages[..., None]
    surrogate = ratio * advantages
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * advantages
    divergence = mean(kl_k3(new, reference))
    loss = mean(-jnp.minimum(surrogate, clipped)) + kl * divergence
    return loss, {
        "kl": divergence,
        "clip_fraction": mean((clipped < surrogate).astype(jnp.float32)),
        "logprob_gap": mean(jnp.abs(new - old)),
    }
