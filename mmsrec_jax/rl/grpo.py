"""Stage 1: GRPO with verifiable rewards (MMSRARec, section A).

One step:

1. Rollout. The model writes G summaries for each of B items; an item's prompt and image are encoded
   once.
2. Rewards. The host parses the summaries and prepares what the rewards read. The reference, which
   is the model with its adapters off, scores them.
3. Advantages. The weighted sum of a summary's rewards, minus its group's mean, divided by the
   group's standard deviation. A group is the G summaries of an item.
4. Update. The clipped surrogate and the divergence from the reference, on micro-batches of whole
   groups; `updates_per_rollout` updates of the adapters.

A step's random numbers depend on (seed, step), so that a resumed run equals an unbroken one.
"""

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from mmsrec_jax.inference.sampler import Generation
from mmsrec_jax.inference.suffixes import suffix_logprobs
from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.rl import metrics
from mmsrec_jax.rl.checks import check
from mmsrec_jax.rl.policy_loss import group_advantages, policy_loss
from mmsrec_jax.rl.rewards import WeightedRewards, make_rewards
from mmsrec_jax.rl.rewards.inputs import RewardInputs
from mmsrec_jax.rl.rollout import make_rollout, make_sampling, parse, prompt_batches
from mmsrec_jax.rl.settings import GRPOSettings
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.arrays import local_rows, to_devices
from mmsrec_jax.runtime.microbatch import accumulate_gradients, map_microbatches
from mmsrec_jax.runtime.settings import as_dict
from mmsrec_jax.training import loop, metering
from mmsrec_jax.training.clipping import clip_by_global_norm
from mmsrec_jax.training.state import TrainState, place

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Metrics = dict[str, jax.Array]
Logged = dict[str, jax.Array | float]


class Scored(NamedTuple):
    """What an update learns from.

    advantages: float32[B, G].
    reference_logprobs: float32[B, G, T], of the summaries' tokens with adapters off.
    """

    advantages: jax.Array
    reference_logprobs: jax.Array


Examples = tuple[Batch, Generation, Scored]


def train(
    config: GRPOSettings,
    model: MLLM,
    tokenizer: "PreTrainedTokenizerBase",
    source: SummarySource,
    *,
    directory: str | os.PathLike,
    mesh: Mesh,
    profile: metering.Steps | None = None,
) -> MLLM:
    """Tunes the adapters of `model` and returns it with them; resumes what `directory` holds.

    Args:
      config: `config.summarizer`.
      model: with adapters, which are donated: go on with the model that is returned.
      source: prompts; its items also give the texts and images that rewards read.
      profile: steps to trace.

    Raises:
      UserError: no adapters, sizes that split a group, or a reward that cannot be computed.
    """
    check(config, model)
    rewards = make_rewards(config.weights, config, source)
    sampling = make_sampling(config, model, tokenizer, source)
    optimizer = make_optimizer(config)
    shard = sharding.process_batch_shard(mesh)
    with jax.set_mesh(mesh):
        graphdef, state, frozen, shardings = place(model, "lora", optimizer, mesh)
        roll = make_rollout(graphdef, sampling, config.seed)
        score = make_score_rollouts(graphdef, rewards, config)
        update = make_update(graphdef, optimizer, config, shardings=shardings)
        count_work = functools.partial(
            metrics.of_work,
            metering.ModelFlops(model, adapters=True),
            updates=config.updates_per_rollout,
            num_batch_shards=shard[1],
        )

        def step(state: TrainState, prompts: Batch) -> tuple[TrainState, Logged]:
            # 1. Rollout
            batch, items = to_devices((prompts.model_inputs(), prompts.index), mesh)
            rollout = roll(state.params, frozen, batch, items, state.step)
            # 2. Rewards and 3. advantages
            summaries = parse(tokenizer, rollout)
            inputs = to_devices(rewards.prepare(np.asarray(prompts.index), summaries), mesh)
            scored, found = score(state.params, frozen, batch, rollout, inputs)
            work = count_work(prompts, local_rows(rollout.lengths))
            logged: Logged = {**found, **metrics.of_keywords(summaries), **work}
            # 4. Update
            for epoch in range(config.updates_per_rollout):
                state, updated = update(state, frozen, batch, rollout, scored)
                gap = updated.pop("logprob_gap")
                if epoch == 0:  # before any update: what separates sampling from training
                    logged["rollout/logprob_gap"] = gap
            return state, {**logged, **updated}

        iterator = iter(prompt_batches(config, source, shard))
        try:
            state = loop.run(
                state,
                step,
                iterator,
                name="grpo",
                directory=directory,
                steps=config.steps,
                checkpoint_every=config.checkpoint_every,
                log_every=config.log_every,
                config=as_dict(config),
                profile=profile,
            )
        finally:
            iterator.close()
    return nnx.merge(graphdef, state.params, frozen)


def make_score_rollouts(
    graphdef: nnx.GraphDef, rewards: WeightedRewards, config: GRPOSettings
) -> Callable[..., tuple[Scored, Metrics]]:
    """Jitted `(params, frozen, batch, rollout, inputs) -> (Scored, metrics)`."""
    num_microbatches = config.num_microbatches

    @jax.jit
    def score(
        params: nnx.State,
        frozen: nnx.State,
        batch: Batch,
        rollout: Generation,
        inputs: RewardInputs[jax.Array],
    ) -> tuple[Scored, Metrics]:
        chex.assert_tree_shape_prefix((batch, inputs), rollout.lengths.shape[:1])
        model = nnx.merge(graphdef, params, frozen)
        scores = rewards.score(model, batch, inputs, num_microbatches=num_microbatches)
        reference = map_microbatches(
            lambda a: suffix_logprobs(model, *a, adapters=False), num_microbatches
        )((batch, rollout.tokens, rollout.lengths))
        advantages = group_advantages(scores["total"], scale_by_std=config.scale_by_std)
        logged = metrics.of_rewards(scores) | metrics.of_rollout(rollout)
        return Scored(advantages, reference), logged

    return score


def make_update(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    config: GRPOSettings,
    *,
    shardings: TrainState | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Jitted `(state, frozen, batch, rollout, scored) -> (state, metrics)`; the state is donated.

    Gradients of `config.num_microbatches` micro-batches of whole groups are averaged before the one
    update.
    """
    num_microbatches = config.num_microbatches

    def loss_of(
        params: nnx.State, frozen: nnx.State, examples: Examples
    ) -> tuple[jax.Array, Metrics]:
        batch, rollout, scored = examples
        model = nnx.merge(graphdef, params, frozen)
        loss, found = policy_loss(
            suffix_logprobs(model, batch, rollout.tokens, rollout.lengths),
            rollout.logprobs,
            scored.reference_logprobs,
            scored.advantages,
            rollout.lengths,
            clip_epsilon=config.clip_epsilon,
            kl_coef=config.kl_coef,
        )
        return loss, found | {"loss": loss}

    def update(
        state: TrainState, frozen: nnx.State, batch: Batch, rollout: Generation, scored: Scored
    ) -> tuple[TrainState, Metrics]:
        chex.assert_tree_shape_prefix((rollout, scored), scored.advantages.shape)
        chex.assert_type(list(scored), jnp.float32)

        def gradients(examples: Examples) -> tuple[nnx.State, Metrics]:
            return jax.grad(loss_of, has_aux=True)(state.params, frozen, examples)

        total = accumulate_gradients(gradients, num_microbatches)((batch, rollout, scored))
        found, means = jax.tree.map(lambda x: x / num_microbatches, total)
        means["gradient_norm"] = optax.global_norm(found)
        return state.apply(found, optimizer), means

    return jax.jit(update, donate_argnums=0, out_shardings=(shardings, None))


def make_optimizer(config: GRPOSettings) -> optax.GradientTransformation:
    """AdamW at a constant rate after a linear warm-up, gradients clipped by their global norm.

    warmup_steps counts updates.
    """
    schedule = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.chain(
        clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule if config.warmup_steps else config.learning_rate,
            weight_decay=config.weight_decay,
        ),
    )
