"""Rollouts: prompts of items in, G summaries of each out."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import chex
import grain
import jax
from flax import nnx

from mmsrec_jax.inference import sampler, texts
from mmsrec_jax.inference.sampler import Generation, Sampling
from mmsrec_jax.inputs import pipeline
from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.inputs.sharded import Sharded
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.prompts import Summary, parse_summary
from mmsrec_jax.rl.settings import GRPOSettings
from mmsrec_jax.runtime.arrays import local_rows
from mmsrec_jax.runtime.sharding import constrain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_batches(
    config: GRPOSettings, source: SummarySource, process_shard: tuple[int, int]
) -> Sharded:
    """Prompts in random order, without end.

    process_shard: see `sharding.process_batch_shard`.
    """

    def batches(shard: int, shards: int) -> grain.IterDataset:
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
            section="config.summarizer",
        )

    return Sharded(batches, config.input_shards, process_shard)


def make_sampling(
    config: GRPOSettings, model: MLLM, tokenizer: "PreTrainedTokenizerBase", source: SummarySource
) -> Sampling:
    """How `config` draws summaries."""
    return texts.make_sampling(
        model,
        tokenizer,
        source,
        num_generations=config.num_generations,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        gather_weights=config.gather_weights,
    )


def make_rollout(
    graphdef: nnx.GraphDef, sampling: Sampling, seed: int
) -> Callable[..., Generation]:
    """Jitted `(params, frozen, batch, items int32[B], step) -> Generation`; draws depend on
    (seed, step) and on the item."""

    @jax.jit
    def roll(
        params: nnx.State, frozen: nnx.State, batch: Batch, items: jax.Array, step: jax.Array
    ) -> Generation:
        chex.assert_tree_shape_prefix(batch, items.shape)
        key = jax.random.fold_in(jax.random.key(seed), step)
        model = nnx.merge(graphdef, params, frozen)
        found = sampler.generate(model, batch, items, key, sampling)
        chex.assert_tree_shape_prefix(found, (*items.shape, sampling.num_generations))
        # Each process reads its own rows of it.
        return jax.tree.map(lambda x: constrain(x, "batch", *(None,) * (x.ndim - 1)), found)

    return roll


def parse(tokenizer: "PreTrainedTokenizerBase", rollout: Generation) -> list[list[Summary]]:
    """The summaries of this process, B lists of G."""
    tokens, lengths = local_rows(rollout.tokens), local_rows(rollout.lengths)
    items, group = lengths.shape
    flat = [
        row[:n].tolist()
        for row, n in zip(tokens.reshape(items * group, -1), lengths.ravel(), strict=True)
    ]
    parsed = [parse_summary(text) for text in tokenizer.batch_decode(flat)]
    return [parsed[i : i + group] for i in range(0, items * group, group)]
