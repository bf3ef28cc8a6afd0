"""Supervised fine-tuning: warm-up and stage 3, cross-entropy on answer tokens only.

The paper trains the verdict token; the listwise term is *ours*: softmax cross-entropy over the
candidates of one user with logit(yes) - logit(no) as their score, the quantity that ranks them.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from mmsrec_jax import sharding
from mmsrec_jax.decoding.candidates import verdict_margins
from mmsrec_jax.decoding.summarise import to_devices
from mmsrec_jax.errors import UserError
from mmsrec_jax.models.loss import token_logprobs
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.training import loop
from mmsrec_jax.training.clipping import clip_by_global_norm
from mmsrec_jax.training.state import TrainState, place

Batch = dict[str, jax.Array]


def train(
    config: Any,
    model: MLLM,
    dataset: Iterable[Any],
    *,
    name: str,
    directory: str | os.PathLike,
    mesh: Mesh,
    verdicts: tuple[int, int],
) -> MLLM:
    """Trains `model` and returns it with the trained weights; resumes what `directory` holds.

    Args:
      config: trainable ("full" or "lora"), steps, warmup_steps, learning_rate (the peak; cosine to
        a tenth of it), weight_decay, clip_norm, listwise_weight (0 = the paper), checkpoint_every,
        log_every.
      model: with adapters if they are what is trained. What is trained of it is donated: go on
        with the model that is returned.
      dataset: `inputs.sharded.Sharded` or `inputs.pipeline.batches`, the rows of this process.
      name: for progress lines.
      verdicts: ids of (yes, no).

    Raises:
      UserError: `trainable` selects nothing in `model`.
    """
    optimizer = make_optimizer(config)
    with jax.set_mesh(mesh):
        graphdef, state, frozen, shardings = place(model, config.trainable, optimizer, mesh)
        step = make_step(
            graphdef,
            optimizer,
            verdicts=verdicts,
            listwise_weight=config.listwise_weight,
            shardings=shardings,
        )

        def step_fn(state, batch):
            return step(state, frozen, to_devices(batch, mesh))

        iterator = iter(dataset)
        try:
            state = loop.run(
                state,
                step_fn,
                iterator,
                name=name,
                directory=directory,
                steps=config.steps,
                checkpoint_every=config.checkpoint_every,
                log_every=config.log_every,
                config=config.to_dict(),
            )
        finally:
            iterator.close()
    return nnx.merge(graphdef, state.params, frozen)


def make_optimizer(config: Any) -> optax.GradientTransformation:
    """AdamW under a warm-up and a cosine, gradients clipped by their global norm.

    Raises:
      UserError: the warm-up takes all steps.
    """
    if config.warmup_steps >= config.steps:
        raise UserError(f"warmup_steps={config.warmup_steps} must be below steps={config.steps}")
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay_steps=config.steps,
        end_value=0.1 * config.learning_rate,
    )
    return optax.chain(
        clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule, b2=0.98, weight_decay=config.weight_decay),
    )


def make_step(
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    *,
    verdicts: tuple[int, int],
    listwise_weight: float,
    shardings: Any = None,
) -> Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Jitted `(state, frozen, batch) -> (state, metrics)`; the state is donated and keeps the
    `shardings` given for it."""

    def compute(params, frozen, batch):
        model = nnx.merge(graphdef, params, frozen)
        return loss(model, batch, verdicts=verdicts, listwise_weight=listwise_weight)

    def step(state, frozen, batch):
        gradients, metrics = jax.grad(compute, has_aux=True)(state.params, frozen, batch)
        metrics["gradient_norm"] = optax.global_norm(gradients)
        return state.apply(gradients, optimizer), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def loss(
    model: MLLM, batch: Batch, *, verdicts: tuple[int, int], listwise_weight: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Scalar loss and metrics of a global batch (see `inputs.pipeline.batches`).

    The token part is the mean over target tokens by their weights, over all rows of all devices;
    the listwise part is the mean over lists that contain their positive.
    """
    hidden = model(batch)
    nll, weights = _target_nll(model, hidden, batch)
    total = token_loss = jnp.sum(nll * weights) / jnp.maximum(jnp.sum(weights), 1e-9)
    metrics = {"loss/tokens": token_loss}
    if "answer_positions" in batch:
        scores = verdict_margins(model, hidden, batch["answer_positions"], verdicts)
        listwise, verdict_metrics = _verdict_terms(scores, batch)
        total = token_loss + listwise_weight * listwise
        metrics |= {"loss/listwise": listwise, **verdict_metrics}
    metrics["loss"] = total
    return total, metrics


def _target_nll(model: MLLM, hidden: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """-log p and weight of the tokens at target_positions, float32[B, A] each."""
    positions = batch["target_positions"]
    at = jnp.maximum(positions, 1)
    targets = jnp.take_along_axis(batch["tokens"], at, axis=1)
    before = jnp.take_along_axis(hidden, (at - 1)[..., None], axis=1)
    before = sharding.constrain(before, "batch", "length", "features")
    # token_logprobs predicts token t from hidden t - 1: shift the gathered pairs accordingly
    logprobs = token_logprobs(
        model, jnp.pad(before, ((0, 0), (0, 1), (0, 0))), jnp.pad(targets, ((0, 0), (1, 0)))
    )[:, 1:]
    weights = jnp.take_along_axis(batch["loss_weights"], at, axis=1)
    return -logprobs, jnp.where(positions >= 0, weights, 0.0)


def _verdict_terms(scores: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Listwise loss over the candidates of each packed example, and accuracies."""
    positions, labels = batch["answer_positions"], batch["labels"]
    there = positions >= 0
    group = jnp.take_along_axis(batch["segment_ids"], jnp.maximum(positions, 0), axis=1)
    together = there[:, :, None] & there[:, None, :] & (group[:, :, None] == group[:, None, :])
    listed = jnp.where(together, scores[:, None, :], -1e30)  # [B, C, C]: row c is the list of c
    positive, negative = there & (labels == 1), there & (labels == 0)
    lists = jnp.maximum(jnp.sum(positive), 1)
    nll = jax.nn.logsumexp(listed, axis=-1) - scores
    first = jnp.sum(listed >= scores[:, :, None], axis=-1) == 1  # a tie counts against it
    yes = jnp.sum(positive & (scores > 0)) / lists
    no = jnp.sum(negative & (scores <= 0)) / jnp.maximum(jnp.sum(negative), 1)
    return jnp.sum(jnp.where(positive, nll, 0.0)) / lists, {
        "verdict/accuracy_yes": yes,
        "verdict/accuracy_no": no,
        "verdict/positive_first": jnp.sum(positive & first) / lists,
    }
