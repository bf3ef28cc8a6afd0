"""Clipping of gradients by their global norm, without a second copy of them."""

import jax
import jax.numpy as jnp
import optax


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales the gradients down to a global norm of `max_norm` where it is larger.

    The result is that of `optax.clip_by_global_norm`. That one divides every gradient, which XLA on
    the CPU does not repeat for each moment: it stores all clipped gradients beside the others. A
    factor computed once is multiplied where it is needed.
    """

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        scale = max_norm / jnp.maximum(optax.global_norm(updates), max_norm)
        return jax.tree.map(lambda x: (x * scale).astype(x.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
