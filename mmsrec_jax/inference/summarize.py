"""Stage 1's offline pass: a greedy summary for every item."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mmsrec_jax.inference import sampler
from mmsrec_jax.inference.sampler import Sampling
from mmsrec_jax.inputs import pipeline
from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import interruption, processes, sharding
from mmsrec_jax.runtime.arrays import to_devices


def summarize(
    model: MLLM,
    tokenizer: Any,
    source: SummarySource,
    *,
    batch_size: int,
    patches: int,
    max_new_tokens: int,
    gather_weights: bool,
    mesh: Mesh,
) -> Iterator[tuple[int, str]]:
    """(item, what the model writes of it) for the rows of `source`, greedily; batch by batch, each
    in the order of its items.

    Every process gets those of all. Batches are made when asked for: a caller that
    stores what it got goes on with a source of the remaining rows.

    Args:
      batch_size: prompts at once, over all processes.
      patches: room for the vision patches of a prompt, 0 without images.
      gather_weights: see `sampler.Sampling`.
    """
    sampling = make_sampling(
        model,
        tokenizer,
        source,
        samples=1,
        max_new_tokens=max_new_tokens,
        temperature=0.0,
        gather_weights=gather_weights,
    )
    graphdef, state = nnx.split(model)
    shard, shards = sharding.process_batch_shard(mesh)
    dataset = pipeline.batches(
        source,
        batch_size=batch_size,
        length=source.length,
        patches=patches,
        shuffle=False,
        repeat=False,
        pack=False,
        shard=shard,
        shards=shards,
    )
    run = sampler.compiled(graphdef, sampling)
    with jax.set_mesh(mesh):
        state = jax.device_put(state, sharding.shardings(state, mesh))
        iterator = iter(dataset)
        try:
            for batch in iterator:
                interruption.stop_if_requested()
                placed = to_devices(prompts_of(batch), mesh)
                rows = placed.pop("index")
                out = run(state, {}, placed, rows, jax.random.key(0))
                texts = tokenizer.batch_decode(processes.fetch(out.tokens)[:, 0])
                items = processes.fetch(rows).tolist()
                for item, text in sorted(zip(items, texts, strict=True)):
                    if item >= 0:
                        yield item, text
        finally:
            iterator.close()


def make_sampling(model: MLLM, tokenizer: Any, source: SummarySource, **options: Any) -> Sampling:
    """Sampling of summaries: ends with the turn; see `sampler.chat_sampling`."""
    stop = source.items.prompt_config.chat.stop_id
    return sampler.chat_sampling(model, tokenizer, stop, **options)


def prompts_of(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the model and the sampler read of a batch of prompts."""
    unused = ("loss_weights", "target_positions", "answer_positions", "labels")
    return {name: value for name, value in batch.items() if name not in unused}
