"""Dropout whose bits are drawn once a step: every use of the generator costs compile seconds."""

import jax
import jax.numpy as jnp


def kept(key: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
    """bool[shape], False with probability `rate`."""
    return jax.random.bits(key, shape, jnp.uint16) >= round(rate * 2**16)


def apply(x: jax.Array, rate: float, keep: jax.Array | None) -> jax.Array:
    """x without what is not kept, scaled to the same mean; x itself without a mask."""
    return x if keep is None else jnp.where(keep, x / (1 - rate), 0)
