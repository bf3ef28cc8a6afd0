"""Stage 1: GRPO on rewards that a frozen reference can verify (MMSRARec, section A).

One step is a rollout (G summaries for each of B items), its rewards and `updates_per_rollout`
updates. The prompt and its image are encoded once per item, in sampling (a shared prefill), in
training and for the reference (G suffixes on one prompt).
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from mmsrec_jax.inference import sampler
from mmsrec_jax.inference.sampler import Generation
from mmsrec_jax.inference.suffixes import suffix_logprobs
from mmsrec_jax.inference.texts import make_sampling, prompts_of
from mmsrec_jax.inputs import pipeline
from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.inputs.sharded import Sharded
from mmsrec_jax.models import flops, lora
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.prompts import Summary, parse_summary
from mmsrec_jax.rl import policy_loss, reference
from mmsrec_jax.rl.reward_inputs import RewardInputs
from mmsrec_jax.runtime import processes, sharding
from mmsrec_jax.runtime.arrays import local_rows, to_devices
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.microbatch import accumulate_gradients, map_microbatches
from mmsrec_jax.runtime.sharding import constrain
from mmsrec_jax.training import loop, metering
from mmsrec_jax.training.clipping import clip_by_global_norm
from mmsrec_jax.training.state import place

ScoreRollouts = Callable[..., dict[str, jax.Array]]


def train(
    config: Any,
    model: MLLM,
    tokenizer: Any,
    source: SummarySource,
    *,
    directory: str | os.PathLike,
    mesh: Mesh,
    profile: metering.Steps | None = None,
) -> MLLM:
    """Tunes the adapters of `model` and returns it with them; resumes what `directory` holds.

    Args:
      config: steps (rollouts), batch_size (items B of a rollout), samples (G), max_new_tokens,
        temperature, top_k, top_p, gather_weights (see `sampler.Sampling`), patches (room for the
        vision patches of a prompt, 0 without images); input_shards (see `inputs.sharded`);
        micro_batch (completions in one backward pass, whole groups);
        updates_per_rollout, clip, kl, scale_by_std; learning_rate, warmup_steps, weight_decay,
        clip_norm; weights (of each of `reference.PARTS`), length ("keywords" or "tokens"),
        reconstruction ("bounded" or "perplexity"), center, distractors, image_tokens; seed,
        workers, checkpoint_every, log_every.
      model: with adapters; without them it is the reference. The adapters are donated: go on with
        the model that is returned.
      source: prompts; its items also give the texts and images that rewards are made of.
      profile: steps to trace.

    Raises:
      UserError: no adapters, sizes that split a group, or a reward that cannot be had.
    """
    num_microbatches = _check(config, model, source)
    sampling = make_sampling(
        model,
        tokenizer,
        source,
        samples=config.samples,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        gather_weights=config.gather_weights,
    )

    def batches(shard, shards):
        return pipeline.batches(
            source,
            batch_size=config.batch_size,
            length=source.length,
            patches=config.patches,
            seed=config.seed,
            pack=False,
            workers=config.workers,
            shard=shard,
            shards=shards,
        )

    share = sharding.process_batch_shard(mesh)
    dataset = Sharded(batches, config.input_shards, share)
    reward_inputs = RewardInputs(
        source.items,
        word_tokens=config.max_new_tokens,
        image_tokens=config.image_tokens,
        prompt_length=source.length,
    )
    optimizer = make_optimizer(config)
    with jax.set_mesh(mesh):
        graphdef, state, frozen, shardings = place(model, "lora", optimizer, mesh)
        roll = make_rollout(graphdef, sampling, config.seed)
        judge = make_score_rollouts(graphdef, config, num_microbatches)
        update = make_update(graphdef, optimizer, config, num_microbatches, shardings=shardings)

        counted = metering.ModelFlops(model, adapters=True)

        def step_fn(state, prompts):
            batch = to_devices(prompts_of(prompts), mesh)
            rows = batch.pop("index")
            rollout = roll(state.params, frozen, batch, rows, state.step)
            summaries = read(tokenizer, rollout)
            texts = reward_inputs.arrays(local_rows(rows), summaries)
            scored = judge(state.params, frozen, batch, rollout, to_devices(texts, mesh))
            metrics = scored.pop("metrics") | count_words(summaries)
            work = _work(counted, prompts, local_rows(rollout.lengths), config)
            metrics |= metering.amount(parts=share[1], **work)
            for epoch in range(config.updates_per_rollout):
                state, update_metrics = update(state, frozen, batch, rollout, scored)
                if epoch == 0:  # before any update: what separates sampling from training
                    metrics["rollout/logprob_gap"] = update_metrics["logprob_gap"]
            del update_metrics["logprob_gap"]
            return state, metrics | update_metrics

        iterator = iter(dataset)
        try:
            state = loop.run(
                state,
                step_fn,
                iterator,
                name="grpo",
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


def _work(
    counted: metering.ModelFlops, prompts: dict[str, np.ndarray], lengths: np.ndarray, config: Any
) -> dict[str, int]:
    """A summary is an example. Sampling and the reference each pass once over a prompt and its
    summaries; what the rewards read is not counted.

    lengths: int[B, G], of the summaries.
    """
    written = lengths.sum(axis=1)
    tokens = np.sum(prompts["segment_ids"] > 0, axis=1) + written
    once = counted(flops.forward, tokens, written, prompts)
    update = counted(flops.train_step, tokens, written, prompts)
    return {
        "tokens": tokens.sum(),
        "examples": lengths.size,
        "flops": 2 * once + config.updates_per_rollout * update,
    }


def settings(config: Any) -> dict[str, Any]:
    """What the trained weights depend on; where weights lie during a rollout does not count."""
    return {k: v for k, v in config.to_dict().items() if k != "gather_weights"}


def make_optimizer(config: Any) -> optax.GradientTransformation:
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


def make_rollout(graphdef: nnx.GraphDef, sampling: sampler.Sampling, seed: int):
    """Jitted `(params, frozen, batch, rows, step) -> Generation`; draws depend on (seed, step)."""

    @jax.jit
    def roll(params, frozen, batch, rows, step) -> Generation:
        key = jax.random.fold_in(jax.random.key(seed), step)
        model = nnx.merge(graphdef, params, frozen)
        found = sampler.generate(model, batch, rows, key, sampling)
        # Each process reads its own rows of it.
        return jax.tree.map(lambda x: constrain(x, "batch", *(None,) * (x.ndim - 1)), found)

    return roll


def make_score_rollouts(
    graphdef: nnx.GraphDef, config: Any, num_microbatches: int
) -> ScoreRollouts:
    """Jitted `(params, frozen, batch, rollout, texts) -> {advantages float32[B, G], reference
    float32[B, G, T] log-probs with adapters off, metrics}`."""
    weights = {name: float(config.weights[name]) for name in reference.PARTS}

    @jax.jit
    def judge(params, frozen, batch, rollout, texts):
        model = nnx.merge(graphdef, params, frozen)
        parts = reference.scores(
            model,
            batch,
            texts,
            length=config.length,
            reconstruction=config.reconstruction,
            center=config.center,
            distractors=config.distractors if weights["image"] else 0,
            num_microbatches=num_microbatches,
        )
        rewards = sum(weights[name] * part for name, part in parts.items())
        log_probs = map_microbatches(
            lambda a: suffix_logprobs(model, *a, adapters=False), num_microbatches
        )((batch, rollout.tokens, rollout.lengths))
        return {
            "advantages": policy_loss.group_advantages(rewards, scale_by_std=config.scale_by_std),
            "reference": log_probs,
            "metrics": _reward_metrics(parts | {"total": rewards}) | _rollout_metrics(rollout),
        }

    return judge


def make_update(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    config: Any,
    num_microbatches: int,
    *,
    shardings: Any = None,
):
    """Jitted `(state, frozen, batch, rollout, scored) -> (state, metrics)`; the state is donated.

    Gradients of `num_microbatches` micro-batches of whole groups are averaged before the one
    update.
    """

    def compute(params, frozen, part):
        batch, rollout, scored = part
        model = nnx.merge(graphdef, params, frozen)
        new = suffix_logprobs(model, batch, rollout.tokens, rollout.lengths)
        loss, metrics = policy_loss.policy_loss(
            new,
            rollout.logprobs,
            scored["reference"],
            scored["advantages"],
            rollout.lengths,
            clip=config.clip,
            kl=config.kl,
        )
        return loss, metrics | {"loss": loss}

    def update(state, frozen, batch, rollout, scored):
        def gradients(part):
            found, metrics = jax.grad(compute, has_aux=True)(state.params, frozen, part)
            return found, metrics

        total = accumulate_gradients(gradients, num_microbatches)((batch, rollout, scored))
        found, metrics = jax.tree.map(lambda x: x / num_microbatches, total)
        metrics["gradient_norm"] = optax.global_norm(found)
        return state.apply(found, optimizer), metrics

    return jax.jit(update, donate_argnums=0, out_shardings=(shardings, None))


def read(tokenizer: Any, rollout: Generation) -> list[list[Summary]]:
    """The summaries of this process, B lists of G."""
    tokens, lengths = local_rows(rollout.tokens), local_rows(rollout.lengths)
    rows, samples, _ = tokens.shape
    flat = [
        row[:n].tolist()
        for row, n in zip(tokens.reshape(rows * samples, -1), lengths.ravel(), strict=True)
    ]
    parsed = [parse_summary(text) for text in tokenizer.batch_decode(flat)]
    return [parsed[i : i + samples] for i in range(0, rows * samples, samples)]


def count_words(summaries: list[list[Summary]]) -> dict[str, float]:
    """Keywords per summary, and how many different ones there are in the rollout, over the
    summaries of all processes: the first sign of a collapse."""
    words = [[w.casefold() for w in s.image + s.text] for group in summaries for s in group]
    words = [found for process in processes.gather(words) for found in process]
    return {
        "rollout/keywords": float(np.mean([len(w) for w in words])),
        "rollout/unique_keywords": float(len({word for found in words for word in found})),
    }


def _reward_metrics(parts: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Mean, and mean standard deviation within a group, of each part and of their weighted sum."""
    metrics = {}
    for name, values in parts.items():
        metrics[f"reward/{name}"] = jnp.mean(values)
        metrics[f"reward_std/{name}"] = jnp.mean(jnp.std(values, axis=-1, ddof=1))
    spread = jnp.max(parts["total"], axis=-1) - jnp.min(parts["total"], axis=-1)
    return metrics | {"reward/groups_without_spread": jnp.mean(spread < 1e-6)}


def _rollout_metrics(rollout: Generation) -> dict[str, jax.Array]:
    tokens = jnp.sum(rollout.lengths)
    return {
        "rollout/tokens": jnp.mean(rollout.lengths),
        "rollout/entropy": jnp.sum(rollout.entropies) / tokens,
        "rollout/full_length": jnp.mean(rollout.lengths == rollout.tokens.shape[-1]),
    }


def _check(config: Any, model: MLLM, source: SummarySource) -> int:
    """Micro-batches of one update."""
    if not lora.adapted(model):
        raise UserError("grpo: the model has no adapters; the reference is the model without them")
    if config.samples < 2:
        raise UserError(f"grpo.samples={config.samples}: an advantage needs a group of at least 2")
    if config.micro_batch % config.samples:
        raise UserError(
            f"grpo.micro_batch={config.micro_batch} would split a group of samples="
            f"{config.samples}; make it a multiple"
        )
    if config.updates_per_rollout < 1:
        raise UserError("grpo.updates_per_rollout must be at least 1")
    total = config.batch_size * config.samples
    if config.micro_batch < 1 or total % config.micro_batch:
        raise UserError(
            f"grpo.micro_batch={config.micro_batch} does not divide batch_size * samples = {total}"
        )
    if missing := set(reference.PARTS) ^ set(config.weights):
        raise UserError(
            f"grpo.weights must name {', '.join(reference.PARTS)}; see {sorted(missing)[0]!r}"
        )
    for name, allowed in (
        ("length", ("keywords", "tokens")),
        ("reconstruction", ("bounded", "perplexity")),
    ):
        if config[name] not in allowed:
            raise UserError(f"grpo.{name}={config[name]!r} is none of {allowed}")
    if config.weights["image"] and not source.items.patch_width:
        raise UserError("grpo.weights.image: the prompts have no images; set it to 0")
    if config.weights["image"] and not 1 <= config.distractors < config.batch_size:
        raise UserError(
            f"grpo.distractors={config.distractors} must be at least 1 and below batch_size="
            f"{config.batch_size}"
        )
    return total // config.micro_batch
