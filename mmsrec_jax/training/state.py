"""What a training loop carries from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """Trained weights and optimiser state.

    Frozen weights are no part of it: steps get them as a separate argument and checkpoints do
    not hold them. Random numbers are a function of (seed, step), so there is no key to store.
    """

    step: jax.Array
    params: Any
    opt_state: Any

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformation) -> "TrainState":
        """State at step 0; optimiser moments inherit the shardings of `params`."""
        return cls(jnp.zeros((), jnp.int32), params, jax.jit(optimizer.init)(params))

    def apply(self, gradients: Any, optimizer: optax.GradientTransformation) -> "TrainState":
        """One optimiser update."""
        updates, opt_state = optimizer.update(gradients, self.opt_state, self.params)
        return TrainState(self.step + 1, optax.apply_updates(self.params, updates), opt_state)
