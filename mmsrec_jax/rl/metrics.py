"""What a step of GRPO logs."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mmsrec_jax.inference.sampler import Generation
from mmsrec_jax.models import flops
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.prompts import Summary
from mmsrec_jax.runtime import processes
from mmsrec_jax.training import metering


def of_rewards(scores: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Mean, and mean standard deviation within a group, of each reward and of their total, and the
    share of groups without a difference to learn from.

    scores: float32[B, G] by name, "total" among them.
    """
    metrics = {}
    for name, values in scores.items():
        metrics[f"reward/{name}"] = jnp.mean(values)
        metrics[f"reward_std/{name}"] = jnp.mean(jnp.std(values, axis=-1, ddof=1))
    spread = jnp.max(scores["total"], axis=-1) - jnp.min(scores["total"], axis=-1)
    return metrics | {"reward/groups_without_spread": jnp.mean(spread < 1e-6)}


def of_rollout(rollout: Generation) -> dict[str, jax.Array]:
    """Mean tokens of a summary, mean entropy of a token in nats, and the share of summaries that
    fill `max_new_tokens`."""
    tokens = jnp.sum(rollout.lengths)
    return {
        "rollout/tokens": jnp.mean(rollout.lengths),
        "rollout/entropy": jnp.sum(rollout.entropies) / tokens,
        "rollout/full_length": jnp.mean(rollout.lengths == rollout.tokens.shape[-1]),
    }


def of_keywords(summaries: Sequence[Sequence[Summary]]) -> dict[str, float]:
    """Keywords per summary, and how many different ones there are in the rollout, over the
    summaries of all processes: the first sign of a collapse."""
    words = [[w.casefold() for w in s.image + s.text] for group in summaries for s in group]
    words = [found for process in processes.gather(words) for found in process]
    return {
        "rollout/keywords": float(np.mean([len(w) for w in words])),
        "rollout/unique_keywords": float(len({word for found in words for word in found})),
    }


def of_work(
    model_flops: metering.ModelFlops,
    prompts: Batch,
    lengths: np.ndarray,
    *,
    updates: int,
    num_batch_shards: int,
) -> dict[str, float]:
    """Tokens, examples (summaries) and FLOPs of a step. Sampling and the reference each pass once
    over a prompt and its summaries; what the rewards read is not counted.

    Args:
      prompts: the batch of this process.
      lengths: int[B, G], of its summaries.
      updates: of one rollout.
      num_batch_shards: parts of a batch, of which this process has one.
    """
    written = lengths.sum(axis=1)
    tokens = np.sum(prompts.segment_ids > 0, axis=1) + written
    once = model_flops(flops.forward, tokens, written, prompts)
    update = model_flops(flops.train_step, tokens, written, prompts)
    return metering.amount(
        parts=num_batch_shards,
        tokens=tokens.sum(),
        examples=lengths.size,
        flops=2 * once + updates * update,
    )
