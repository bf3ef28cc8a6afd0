"""Supervised fine-tuning: warm-up and stage 3, cross-entropy on answer tokens only.

The paper trains the yes/no label token; the listwise term is *ours*: softmax cross-entropy over the
candidates of one user with logit(yes) - logit(no) as their score, the quantity that ranks them.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from mmsrec_jax.inference.yes_no import yes_no_margins
from mmsrec_jax.models import flops
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.batch_tree import check_shapes
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.models.token_logprobs import token_logprobs
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.arrays import to_devices
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.microbatch import accumulate_gradients
from mmsrec_jax.training import loop, metering
from mmsrec_jax.training.clipping import clip_by_global_norm
from mmsrec_jax.training.state import TrainState, on_devices, place

Counts = dict[str, jax.Array]


def train(
    config: Any,
    model: MLLM,
    dataset: Iterable[Any],
    *,
    name: str,
    directory: str | os.PathLike,
    mesh: Mesh,
    yes_no_ids: tuple[int, int],
    profile: metering.Steps | None = None,
) -> MLLM:
    """Trains `model` and returns it with the trained weights; resumes what `directory` holds.

    Args:
      config: trainable ("full" or "lora"), steps, warmup_steps, learning_rate (the peak; cosine to
        a tenth of it), weight_decay, clip_norm, listwise_weight (0 = the paper), batch_size,
        micro_batch (rows in one backward pass, 0 = all), offload_optimizer (its moments lie in the
        hosts' memory between updates), checkpoint_every, log_every.
      model: with adapters if they are what is trained. What is trained of it is donated: go on
        with the model that is returned.
      dataset: `inputs.sharded.Sharded` or `inputs.pipeline.batches`, the rows of this process.
      name: for progress lines.
      yes_no_ids: ids of (yes, no).
      profile: steps to trace.

    Raises:
      UserError: `trainable` selects nothing in `model`, or a micro-batch that does not divide.
    """
    optimizer = make_optimizer(config)
    with jax.set_mesh(mesh):
        graphdef, state, frozen, shardings = place(
            model, config.trainable, optimizer, mesh, offload=config.offload_optimizer
        )
        step = make_step(
            graphdef,
            optimizer,
            yes_no_ids=yes_no_ids,
            listwise_weight=config.listwise_weight,
            num_microbatches=num_microbatches(config, mesh),
            shardings=shardings,
            offload=config.offload_optimizer,
        )

        counted = metering.ModelFlops(model, adapters=config.trainable == "lora")
        _, parts = sharding.process_batch_shard(mesh)

        def step_fn(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
            work = metering.amount(parts=parts, **_work(counted, batch))
            state, metrics = step(state, frozen, to_devices(batch, mesh))
            return state, metrics | work

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
                config=settings(config),
                profile=profile,
            )
        finally:
            iterator.close()
    return nnx.merge(graphdef, state.params, frozen)


def settings(config: Any) -> dict[str, Any]:
    """What the trained weights depend on; where the optimizer's moments lie does not count."""
    return {k: v for k, v in config.to_dict().items() if k != "offload_optimizer"}


def num_microbatches(config: Any, mesh: Mesh) -> int:
    """How many backward passes a step takes.

    Raises:
      UserError: config.micro_batch does not divide.
    """
    if not config.micro_batch:
        return 1
    shards = sharding.num_batch_shards(mesh)
    if config.batch_size % config.micro_batch or config.micro_batch % shards:
        raise UserError(
            f"micro_batch={config.micro_batch} must divide batch_size={config.batch_size} and be a "
            f"multiple of the {shards} shards of the batch (mesh data x fsdp)"
        )
    return config.batch_size // config.micro_batch


def _work(counted: metering.ModelFlops, batch: Batch) -> dict[str, int]:
    tokens = np.sum(batch.segment_ids > 0, axis=1)
    targets = np.sum(batch.target_positions >= 0, axis=1)
    return metering.of_rows(batch.segment_ids) | {
        "flops": counted(flops.train_step, tokens, targets, batch)
    }


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
    yes_no_ids: tuple[int, int],
    listwise_weight: float,
    num_microbatches: int = 1,
    shardings: Any = None,
    offload: bool = False,
) -> Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Jitted `(state, frozen, batch) -> (state, metrics)`; the state is donated and keeps the
    `shardings` given for it, with `offload` those of an offloaded optimizer. Gradients of
    `num_microbatches` parts of the batch are added up."""

    def compute(
        params: nnx.State, frozen: nnx.State, batch: Batch, counts: Counts
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        model = nnx.merge(graphdef, params, frozen)
        return loss(
            model, batch, yes_no_ids=yes_no_ids, listwise_weight=listwise_weight, counts=counts
        )

    def step(
        state: TrainState, frozen: nnx.State, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        counts = count(batch)
        differentiate = jax.grad(compute, has_aux=True)
        gradients, metrics = accumulate_gradients(
            lambda part: differentiate(state.params, frozen, part, counts), num_microbatches
        )(batch)
        metrics["gradient_norm"] = optax.global_norm(gradients)
        state = on_devices(state) if offload else state
        return state.apply(gradients, optimizer), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def loss(
    model: MLLM,
    batch: Batch,
    *,
    yes_no_ids: tuple[int, int],
    listwise_weight: float,
    counts: Counts | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Scalar loss and metrics of a global batch (see `inputs.pipeline.batches`).

    The token part is the mean over target tokens by their weights, over all rows of all devices;
    the listwise part is the mean over lists that contain their positive.

    counts: of the batch that these rows are a part of. Losses, metrics and gradients of the parts
      then add up to those of the batch, however its tokens are spread over them.
    """
    check_shapes(batch, "loss_weights", "target_positions")
    counts = count(batch) if counts is None else counts
    hidden = model(batch)
    nll, weights = _target_nll(model, hidden, batch)
    total = token_loss = jnp.sum(nll * weights) / counts["weight"]
    metrics = {"loss/tokens": token_loss}
    if batch.answer_positions is not None:
        scores = yes_no_margins(model, hidden, batch.answer_positions, yes_no_ids)
        listwise, yes_no_metrics = _yes_no_terms(scores, batch, counts)
        total = token_loss + listwise_weight * listwise
        metrics |= {"loss/listwise": listwise, **yes_no_metrics}
    metrics["loss"] = total
    return total, metrics


def row_sums(model: MLLM, batch: Batch) -> jax.Array:
    """float32[B, 2]: the rows' sums of -log p of target tokens by their weights, and of these."""
    nll, weights = _target_nll(model, model(batch), batch)
    return jnp.stack([jnp.sum(nll * weights, axis=1), jnp.sum(weights, axis=1)], axis=1)


def count(batch: Batch) -> Counts:
    """What the terms of the loss are divided by: the weight of the target tokens; positive
    candidates (a list has one) and negative ones."""
    counts = {"weight": jnp.maximum(jnp.sum(_target_weights(batch)), 1e-9)}
    if batch.answer_positions is not None:
        positive, negative = _labelled(batch)
        counts["lists"] = jnp.maximum(jnp.sum(positive), 1)
        counts["negatives"] = jnp.maximum(jnp.sum(negative), 1)
    return counts


def _target_weights(batch: Batch) -> jax.Array:
    positions = batch.target_positions
    weights = jnp.take_along_axis(batch.loss_weights, jnp.maximum(positions, 1), axis=1)
    return jnp.where(positions >= 0, weights, 0.0)


def _labelled(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """bool[B, C] each: the candidate is positive, negative."""
    there = batch.answer_positions >= 0
    return there & (batch.labels == 1), there & (batch.labels == 0)


def _target_nll(model: MLLM, hidden: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """-log p and weight of the tokens at target_positions, float32[B, A] each."""
    at = jnp.maximum(batch.target_positions, 1)
    targets = jnp.take_along_axis(batch.tokens, at, axis=1)
    before = jnp.take_along_axis(hidden, (at - 1)[..., None], axis=1)
    before = sharding.constrain(before, "batch", "length", "features")
    # token_logprobs predicts token t from hidden t - 1: shift the gathered pairs accordingly
    logprobs = token_logprobs(
        model, jnp.pad(before, ((0, 0), (0, 1), (0, 0))), jnp.pad(targets, ((0, 0), (1, 0)))
    )[:, 1:]
    return -logprobs, _target_weights(batch)


def _yes_no_terms(
    scores: jax.Array, batch: Batch, counts: Counts
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Listwise loss over the candidates of each packed example, and accuracies."""
    positions = batch.answer_positions
    there = positions >= 0
    group = jnp.take_along_axis(batch.segment_ids, jnp.maximum(positions, 0), axis=1)
    together = there[:, :, None] & there[:, None, :] & (group[:, :, None] == group[:, None, :])
    listed = jnp.where(together, scores[:, None, :], -1e30)  # [B, C, C]: row c is the list of c
    positive, negative = _labelled(batch)
    lists = counts["lists"]
    nll = jax.nn.logsumexp(listed, axis=-1) - scores
    first = jnp.sum(listed >= scores[:, :, None], axis=-1) == 1  # a tie counts against it
    yes = jnp.sum(positive & (scores > 0)) / lists
    no = jnp.sum(negative & (scores <= 0)) / counts["negatives"]
    return jnp.sum(jnp.where(positive, nll, 0.0)) / lists, {
        "yes/no label/accuracy_yes": yes,
        "yes/no label/accuracy_no": no,
        "yes/no label/positive_first": jnp.sum(positive & first) / lists,
    }
