"""What a training loop carries from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from mmsrec_jax.models import trainable as trainables
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import sharding


class TrainState(flax.struct.PyTreeNode):
    """Trained weights and optimizer state.

    Frozen weights are no part of it: steps get them as a separate argument and checkpoints do
    not hold them. Random numbers are a function of (seed, step), so there is no key to store.
    """

    step: jax.Array
    params: Any
    opt_state: Any

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformation) -> "TrainState":
        """State at step 0; optimizer moments inherit the shardings of `params`."""
        return cls(jnp.zeros((), jnp.int32), params, jax.jit(optimizer.init)(params))

    def apply(self, gradients: Any, optimizer: optax.GradientTransformation) -> "TrainState":
        """One optimizer update."""
        updates, opt_state = optimizer.update(gradients, self.opt_state, self.params)
        return TrainState(self.step + 1, optax.apply_updates(self.params, updates), opt_state)


def place(
    model: MLLM,
    trainable: str,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    offload: bool = False,
) -> tuple[nnx.GraphDef, TrainState, nnx.State, TrainState]:
    """`model` on `mesh`: its graph, the state at step 0 of what is `trainable` (a kind of
    `models.trainable`), the frozen rest, and the shardings of the state.

    offload: the optimizer's arrays lie in the hosts' memory; see `on_devices`.

    Raises:
      UserError: `trainable` selects nothing in `model`.
    """
    graphdef, trained, frozen = _split(model, trainable)
    trained, frozen = (jax.device_put(x, sharding.shardings(x, mesh)) for x in (trained, frozen))
    state = TrainState.create(trained, optimizer)
    shardings = _shardings(state, mesh, offload)
    return graphdef, jax.device_put(state, shardings), frozen, shardings


def place_abstract(
    model: MLLM,
    trainable: str,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    offload: bool = False,
) -> tuple[nnx.GraphDef, TrainState, nnx.State, TrainState]:
    """What `place` returns, as shapes with shardings; `model` may be of `nnx.eval_shape`."""
    graphdef, trained, frozen = _split(model, trainable)
    state = jax.eval_shape(lambda params: TrainState.create(params, optimizer), trained)
    shardings = _shardings(state, mesh, offload)
    frozen = sharding.abstract(frozen, sharding.shardings(frozen, mesh))
    return graphdef, sharding.abstract(state, shardings), frozen, shardings


def on_devices(state: TrainState) -> TrainState:
    """The state with the optimizer's arrays in the devices' memory, inside a step that updates it
    and whose `out_shardings` send them back to the hosts."""
    return state.replace(opt_state=jax.device_put(state.opt_state, jax.memory.Space.Device))


def _shardings(state: TrainState, mesh: Mesh, offload: bool) -> TrainState:
    found = sharding.shardings(state, mesh)
    if not offload:
        return found
    return found.replace(
        opt_state=jax.tree.map(
            lambda x, where: where.with_memory_kind("pinned_host") if x.ndim else where,
            state.opt_state,
            found.opt_state,
        )
    )


def _split(model: MLLM, trainable: str) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    trainables.check(model, trainable)
    graphdef, trained, *others = nnx.split(model, trainables.filter_of(trainable), ...)
    return graphdef, trained, others[0]
