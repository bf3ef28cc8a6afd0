"""Rewards of the summaries that items have in the end, for people who look at a run (*ours*)."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh

from mmsrec_jax.inference.forward import in_order
from mmsrec_jax.inference.texts import Subset
from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.prompts import Summary
from mmsrec_jax.rl.rewards import make_rewards
from mmsrec_jax.rl.rewards.inputs import RewardInputs
from mmsrec_jax.rl.settings import GRPOSettings
from mmsrec_jax.runtime import interruption, sharding
from mmsrec_jax.runtime.arrays import fetch, to_devices


def of_items(
    config: GRPOSettings,
    model: MLLM,
    source: SummarySource,
    items: Sequence[int],
    summaries: Sequence[Summary],
    *,
    mesh: Mesh,
) -> dict[int, dict[str, float]]:
    """Item -> reward by name, with their weighted sum "total", of one summary of each.

    They are those of training, in batches of `config.batch_size` items: what the semantic reward
    subtracts and which images the image-contrastive reward compares with are of these items, so
    that the numbers are of this set of items alone. The last batch is filled up with the first
    items. All processes call it together and get the same.

    Args:
      config: `config.summarizer`.
      model: the reference is this model with its adapters off.
      source: prompts of all items.
      items: int[n] of them; summaries: n.
    """
    summary_of = dict(zip(items, summaries, strict=True))
    rewards = make_rewards(config.weights, config, source)
    graphdef, state = nnx.split(model)

    def score_summaries(
        state: nnx.State, batch: Batch, inputs: RewardInputs[jax.Array]
    ) -> dict[str, jax.Array]:
        model, parts = nnx.merge(graphdef, state), config.num_microbatches
        scores = rewards.score(model, batch, inputs, num_microbatches=parts)
        return {name: values[:, 0] for name, values in scores.items()}

    score = jax.jit(score_summaries, out_shardings=sharding.replicated(mesh))
    batches = iter(
        in_order(
            Subset(source, _in_rows(items, config.batch_size, mesh)),
            mesh,
            batch_size=config.batch_size,
            length=source.length,
            patches=config.patches,
            workers=0,
            section="config.summarizer",
        )
    )
    state = jax.device_put(state, sharding.shardings(state, mesh))
    found: dict[int, dict[str, float]] = {}
    try:
        for batch in batches:
            interruption.stop_if_requested()
            own = np.asarray(batch.index)
            inputs = rewards.prepare(own, [[summary_of[item]] for item in own.tolist()])
            with jax.set_mesh(mesh):
                prompts, index, inputs = to_devices(
                    (batch.model_inputs(), batch.index, inputs), mesh
                )
                scores = score(state, prompts, inputs)
            columns = {name: fetch(values).tolist() for name, values in scores.items()}
            for row, item in enumerate(fetch(index).tolist()):
                found.setdefault(item, {name: values[row] for name, values in columns.items()})
    finally:
        batches.close()
    return found


def finite(found: Mapping[int, Mapping[str, float]]) -> dict[int, dict[str, float]]:
    """What `of_items` found, without numbers that are not finite, which JSON does not have; a
    warning counts them."""
    kept = {
        item: {name: value for name, value in rewards.items() if math.isfinite(value)}
        for item, rewards in found.items()
    }
    lacking = Counter(name for item in found for name in found[item].keys() - kept[item].keys())
    for name, count in sorted(lacking.items()):
        logging.warning("reward %s of %d in %d items is not finite", name, count, len(found))
    return kept


def _in_rows(items: Sequence[int], batch_size: int, mesh: Mesh) -> list[int]:
    """Whole batches of items, so ordered that a batch's rows over all processes are the
    same on any number of them: a process takes every so-manyth example."""
    _, shards = sharding.process_batch_shard(mesh)
    count = -(-len(items) // batch_size) * batch_size
    rows = np.resize(items, count).reshape(-1, shards, batch_size // shards)
    return rows.swapaxes(1, 2).ravel().tolist()
