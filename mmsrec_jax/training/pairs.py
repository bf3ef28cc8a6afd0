"""Stage 3 in the cached form (*ours*): every item of a batch is a candidate of every user of it.

The loss is the softmax cross-entropy of the target among the items of the batch, with
logit(yes) - logit(no), the score that ranks, as their logits. An item that is often in a batch is
often a negative: its logit is lowered by the logarithm of how often (Yi et al., RecSys 2019), so
that the loss estimates that over the whole catalog.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from mmsrec_jax.inference.yes_no import margins_after
from mmsrec_jax.models.late_interaction import Tail, encode, read_pairs
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.models.pair_batch import PairBatch
from mmsrec_jax.runtime.arrays import to_devices
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import as_dict, setting
from mmsrec_jax.training import loop, metering
from mmsrec_jax.training.sft import UpdateSettings, make_optimizer
from mmsrec_jax.training.state import TrainState, on_devices, place

Validate = Callable[[MLLM], dict[str, float]]
SELECTED_BY = "validation/ndcg@10"


@dataclasses.dataclass(frozen=True)
class CachedSettings(UpdateSettings):
    """Stage 3 in the cached form, and the room of its prompts."""

    steps: int = setting(2000, "Updates; a multiple of `evaluate_every`.", low=1)
    num_users: int = setting(32, "Users of an update.", low=1)
    num_items: int = setting(
        128, "Items of an update: the users' targets, and others drawn uniformly.", low=2
    )
    prompt_length: int = setting(512, "Tokens of a user's prompt.", low=8)
    item_length: int = setting(512, "Tokens of an item.", low=1)
    item_patches: int = setting(1024, "Vision patches of an item.", low=0)
    tail: int = setting(1, "Last tokens of what is said of an item, which see both sides.", low=1)
    align: float = setting(
        0.1,
        "Share of the prompts that hold the keywords of an item, which is to be found.",
        low=0,
        high=1,
    )
    evaluate_every: int = setting(200, "Steps between two validations.", low=1)
    validation_rows: int = setting(
        1000, "Size of a random subset of the validation targets. 0 is all.", low=0
    )
    score_users: int = setting(64, "Users scored at a time.", low=1)
    score_items: int = setting(512, "Items that they meet at a time.", low=1)

    def check(self, name: str) -> None:
        super().check(name)
        if self.num_items < self.num_users:
            raise UserError(
                f"{name}.num_items={self.num_items}: must be at least num_users={self.num_users}"
            )
        if self.steps % self.evaluate_every:
            raise UserError(
                f"{name}.steps={self.steps}: must be a multiple of "
                f"evaluate_every={self.evaluate_every}, so that the last weights are validated"
            )

    @property
    def patches(self) -> int:
        """Room for images, by the name it has elsewhere."""
        return self.item_patches


def loss(
    model: MLLM, batch: PairBatch, tail: jax.Array, yes_no_ids: tuple[int, int]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Scalar loss and metrics; tail: int32[r]."""
    users, items = encode(model, batch.users), encode(model, batch.items)
    hidden = read_pairs(model, users, items, Tail(tail, batch.tails))
    margins = margins_after(model, hidden, yes_no_ids)
    logits = jnp.where(batch.competes, margins - batch.log_frequency, -1e30)
    found = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    own = jnp.take_along_axis(logits, batch.targets[:, None], axis=1)
    first = jnp.mean(jnp.sum(logits >= own, axis=1) == 1)  # a tie counts against it
    total = jnp.mean(found)
    return total, {"loss": total, "first_of_batch": first}


def make_step(
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    tail: jax.Array,
    *,
    yes_no_ids: tuple[int, int],
    shardings: Any = None,
    offload: bool = False,
) -> Callable[[TrainState, Any, PairBatch], tuple[TrainState, dict[str, jax.Array]]]:
    """Jitted `(state, frozen, batch) -> (state, metrics)`; the state is donated and keeps the
    `shardings`."""

    def compute(
        params: nnx.State, frozen: nnx.State, batch: PairBatch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        return loss(nnx.merge(graphdef, params, frozen), batch, tail, yes_no_ids)

    def step(
        state: TrainState, frozen: nnx.State, batch: PairBatch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        gradients, metrics = jax.grad(compute, has_aux=True)(state.params, frozen, batch)
        metrics["gradient_norm"] = optax.global_norm(gradients)
        state = on_devices(state) if offload else state
        return state.apply(gradients, optimizer), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def train(
    settings: CachedSettings,
    model: MLLM,
    dataset: grain.IterDataset,
    tail: Any,
    *,
    name: str,
    directory: str | os.PathLike,
    mesh: Mesh,
    yes_no_ids: tuple[int, int],
    validate: Validate,
    profile: metering.Steps | None = None,
) -> MLLM:
    """Trains `model` and returns it with the weights that were best on validation; resumes what
    `directory` holds.

    Args:
      model: with adapters if they are trained. What is trained of it is donated: go on with the
        model that is returned.
      dataset: of `inputs.pairs`, the rows of this process.
      tail: int32[r], of the prompts.
      yes_no_ids: ids of (yes, no).
      validate: metrics of a model, `SELECTED_BY` among them; called every `evaluate_every` steps.
      profile: steps to trace.

    Raises:
      UserError: `trainable` selects nothing in `model`.
    """
    optimizer = make_optimizer(settings)
    offload = settings.offload_optimizer
    with jax.set_mesh(mesh):
        graphdef, state, frozen, shardings = place(
            model, settings.trainable, optimizer, mesh, offload=offload
        )
        step = make_step(
            graphdef, optimizer, jnp.asarray(tail),
            yes_no_ids=yes_no_ids, shardings=shardings, offload=offload,
        )  # fmt: skip

        def step_fn(state: TrainState, batch: PairBatch) -> tuple[TrainState, dict[str, Any]]:
            work = metering.amount(
                pairs=settings.num_users * settings.num_items, examples=settings.num_users
            )
            state, metrics = step(state, frozen, to_devices(batch, mesh))
            return state, metrics | work

        def evaluate(state: TrainState, _: int) -> tuple[TrainState, dict[str, float], bool]:
            return state, validate(nnx.merge(graphdef, state.params, frozen)), False

        iterator: Any = iter(dataset)
        try:
            state = loop.run(
                state,
                step_fn,
                iterator,
                name=name,
                directory=directory,
                steps=settings.steps,
                checkpoint_every=settings.checkpoint_every,
                log_every=settings.log_every,
                evaluate=evaluate,
                evaluate_every=settings.evaluate_every,
                best=SELECTED_BY,
                config=as_dict(settings),
                profile=profile,
            )
        finally:
            iterator.close()
    return nnx.merge(graphdef, state.params, frozen)
