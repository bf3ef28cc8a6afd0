"""Stage 3 in the cached form (*ours*): every item of a batch is a candidate of every user of it.

The loss is the softmax cross-entropy of the target among the items of the batch, with
logit(yes) - logit(no), the score that ranks, as their logits. An item that is often in a batch is
often a negative: its logit is lowered by the logarithm of how often (Yi et al., RecSys 2019), so
that the loss estimates that over the whole catalog.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from mmsrec_jax.inference.pair_margins import cosines, pair_margins
from mmsrec_jax.models.late_interaction import Tail, continue_prompts, encode, encode_with_states
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.models.pair_batch import PairBatch
from mmsrec_jax.models.token_logprobs import next_logprobs
from mmsrec_jax.runtime.arrays import to_devices
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import setting
from mmsrec_jax.training import metering
from mmsrec_jax.training.sft import (
    UpdateSettings,
    Validation,
    make_optimizer,
    run_loop,
    selected,
)
from mmsrec_jax.training.state import TrainState, on_devices, place


class TaskWeights(NamedTuple):
    """Of the tasks beside ranking."""

    next_keywords: float
    next_in_history: float
    close_in_history: float


@dataclasses.dataclass(frozen=True)
class CachedSettings(UpdateSettings):
    """Stage 3 in the cached form, and the room of its prompts."""

    steps: int = setting(2000, "Updates.", low=1, high=1_000_000_000)
    num_users: int = setting(32, "Users of an update.", low=1, high=1_000_000)
    num_items: int = setting(
        128,
        "Items of an update: the users' targets, and others, of their histories first.",
        low=2,
        high=1_000_000,
    )
    prompt_length: int = setting(512, "Tokens of a user's prompt.", low=8, high=1_000_000)
    item_length: int = setting(512, "Tokens of an item.", low=1, high=1_000_000)
    item_patches: int = setting(1024, "Vision patches of an item.", low=0, high=1_000_000)
    tail: int = setting(
        1,
        "Last tokens of what is said of an item, which see both sides. 0: users and items never "
        "meet, and the score is the cosine alone.",
        low=0,
        high=1000,
    )
    each_user_once: bool = setting(
        False,
        "Train on the last training target of each user alone: the earlier ones are later items of "
        "its history.",
    )
    align: float = setting(
        0.1,
        "Share of the prompts that hold the keywords of an item, which is to be found.",
        low=0,
        high=1,
    )
    next_keywords: float = setting(
        0.3,
        "Weight of the loss of the next item's keywords, written after a prompt.",
        low=0,
        high=1000,
    )
    next_in_history: float = setting(
        0.3,
        "Weight of the loss of the keywords of a history's items but the first, in the prompt.",
        low=0,
        high=1000,
    )
    closeness: float = setting(
        10.0,
        "What the cosine of the ends of a user's prompt and of an item counts beside the margin.",
        low=0,
        high=1000,
    )
    close_in_history: float = setting(
        1.0,
        "Weight of the loss of finding a history's items but the first among those of the batch by "
        "the cosine of where the item before and the item end. Without `closeness` there is none.",
        low=0,
        high=1000,
    )
    history_end: bool = setting(
        True,
        "A user is the mean of where the history in the prompt ends and where the prompt ends. "
        "False: the latter alone.",
    )
    words_length: int = setting(
        64, "Tokens of the question for them and of the answer.", low=2, high=100_000
    )
    evaluate_every: int = setting(
        200, "Steps between two validations; the last step is one.", low=1, high=1_000_000_000
    )
    validation_rows: int = setting(
        1000,
        "Size of a random subset of the validation targets. 0 is all.",
        low=0,
        high=1_000_000_000,
    )
    score_users: int = setting(64, "Users scored at a time.", low=1, high=1_000_000)
    score_items: int = setting(512, "Items that they meet at a time.", low=1, high=10_000_000)

    def check(self, name: str) -> None:
        super().check(name)
        if self.num_items < self.num_users:
            raise UserError(
                f"{name}.num_items={self.num_items}: must be at least num_users={self.num_users}"
            )
        if not self.tail and not self.closeness:
            raise UserError(f"{name}.tail=0 and {name}.closeness=0 leave no score; raise one")
        if self.tail > self.item_length:
            raise UserError(
                f"{name}.tail={self.tail}: must be at most item_length={self.item_length}"
            )

    @property
    def task_weights(self) -> TaskWeights:
        close = self.close_in_history if self.closeness else 0.0
        return TaskWeights(self.next_keywords, self.next_in_history, close)

    @property
    def patches(self) -> int:
        """Room for images, by the name it has elsewhere."""
        return self.item_patches


def loss(
    model: MLLM,
    batch: PairBatch,
    tail: jax.Array,
    *,
    start: int,
    yes_no_ids: tuple[int, int],
    closeness: float,
    weights: TaskWeights,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Scalar loss and metrics.

    tail: int32[r]; start: position where prompts end.
    """
    items = encode(model, batch.items)
    users, states = encode_with_states(model, batch.users)
    margins = pair_margins(
        model, users, items, Tail(tail, batch.tails), yes_no_ids=yes_no_ids, closeness=closeness
    )
    logits = jnp.where(batch.competes, margins - batch.log_frequency, -1e30)
    found = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    own = jnp.take_along_axis(logits, batch.targets[:, None], axis=1)
    first = jnp.mean(jnp.sum(logits >= own, axis=1) == 1)  # a tie counts against it
    total = listwise = jnp.mean(found)
    metrics = {"loss/listwise": listwise, "first_of_batch": first}
    if weights.next_keywords:
        said = continue_prompts(model, users, batch.words, start)
        metrics["loss/next_keywords"] = _mean_nll(model, said, batch.words, batch.word_weights)
        total += weights.next_keywords * metrics["loss/next_keywords"]
    if weights.next_in_history:
        tokens, counted = batch.users.tokens, batch.history_weights
        metrics["loss/next_in_history"] = _mean_nll(model, states, tokens, counted)
        total += weights.next_in_history * metrics["loss/next_in_history"]
    if weights.close_in_history:
        metrics |= _close_in_history(states, items.end, batch, closeness)
        total += weights.close_in_history * metrics["loss/close_in_history"]
    return total, metrics | {"loss": total}


def _close_in_history(
    states: jax.Array, items: jax.Array, batch: PairBatch, closeness: float
) -> dict[str, jax.Array]:
    """Softmax cross-entropy of the next item of a history among those of the batch, of which the
    user's other interactions do not compete; the mean over those that are in the batch.

    states: [B, L, hidden], of the prompts; items: [M, hidden].
    """
    at = jnp.take_along_axis(states, batch.history_ends[..., None], axis=1)
    rows, ends, hidden = at.shape
    logits = closeness * cosines(at.reshape(rows * ends, hidden), items) - batch.log_frequency
    logits = logits.reshape(rows, ends, -1)
    places = jnp.arange(logits.shape[-1])
    own = batch.history_nexts[..., None] == places
    logits = jnp.where(batch.competes[:, None] | own, logits, -1e30)
    there = batch.history_nexts >= 0
    found = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.maximum(batch.history_nexts, 0)
    )
    return {"loss/close_in_history": jnp.sum(found * there) / jnp.maximum(jnp.sum(there), 1)}


def _mean_nll(model: MLLM, hidden: jax.Array, tokens: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean of -log p of tokens int32[B, T] by their weights; hidden: [B, T, hidden], of each."""
    nll = -next_logprobs(model, hidden[:, :-1], tokens[:, 1:])
    return jnp.sum(nll * weights[:, 1:]) / jnp.maximum(jnp.sum(weights[:, 1:]), 1)


def make_step(
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    tail: jax.Array,
    *,
    start: int,
    yes_no_ids: tuple[int, int],
    closeness: float,
    weights: TaskWeights,
    shardings: Any = None,
    offload: bool = False,
) -> Callable[[TrainState, Any, PairBatch], tuple[TrainState, dict[str, jax.Array]]]:
    """Jitted `(state, frozen, batch) -> (state, metrics)`; the state is donated and keeps the
    `shardings`."""

    def compute(
        params: nnx.State, frozen: nnx.State, batch: PairBatch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        return loss(
            nnx.merge(graphdef, params, frozen), batch, tail,
            start=start, yes_no_ids=yes_no_ids, closeness=closeness, weights=weights,
        )  # fmt: skip

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
    validate: Callable[[MLLM], dict[str, float]],
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
      validate: metrics of a model, `sft.SELECTED_BY` among them; called every `evaluate_every`
        steps and after the last one.
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
            graphdef, optimizer, jnp.asarray(tail), start=settings.prompt_length,
            yes_no_ids=yes_no_ids, closeness=settings.closeness,
            weights=settings.task_weights,
            shardings=shardings, offload=offload,
        )  # fmt: skip

        def step_fn(state: TrainState, batch: PairBatch) -> tuple[TrainState, dict[str, Any]]:
            work = metering.amount(
                pairs=settings.num_users * settings.num_items, examples=settings.num_users
            )
            state, metrics = step(state, frozen, to_devices(batch, mesh))
            return state, metrics | work

        validation = Validation(settings.evaluate_every, validate)
        state = run_loop(
            settings, state, step_fn, dataset, name=name, directory=directory, profile=profile,
            **selected(validation, graphdef, frozen),
        )  # fmt: skip
    return nnx.merge(graphdef, state.params, frozen)
