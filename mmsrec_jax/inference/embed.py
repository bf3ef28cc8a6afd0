"""Item features from an MLLM: hidden states of each item's own tokens, pooled."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mmsrec_jax.inference.forward import Compute, in_order, per_row
from mmsrec_jax.inputs.item_prompts import ContentSource, TextSource
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime.progress import Progress


def embed_items(
    model: MLLM,
    source: ContentSource,
    *,
    name: str,
    batch_size: int,
    patches: int,
    workers: int,
    mesh: Mesh,
    counts: Counter | None = None,
) -> np.ndarray:
    """What the model makes of the items of `source`: float32[items, hidden].

    Mean of the final hidden states over an item's own tokens: image slots and text, not the opening
    of the conversation, on which language models park large values (*ours*; Molar reads one token
    that it is fine-tuned for). Zeros where an item has no such token.

    Args:
      batch_size: prompts at once.
      patches: room for the vision patches of a prompt, 0 for prompts without images.
      counts: as in `pipeline.batches`.
    """
    dataset = in_order(
        source,
        mesh,
        batch_size=batch_size,
        length=source.length,
        patches=patches,
        targets=source.length,
        workers=workers,
        counts=counts,
        section="config.features",
    )
    found = np.zeros((len(source), model.config.text.hidden), np.float32)
    progress = Progress(f"features {name}", len(source), unit="items")
    for items, values in per_row(model, dataset, mean_hidden, progress=progress, mesh=mesh):
        found[items] = values
    return found


def embed_texts(
    model: MLLM,
    source: TextSource,
    *,
    name: str,
    batch_size: int,
    workers: int,
    mesh: Mesh,
    counts: Counter | None = None,
) -> np.ndarray:
    """What the model makes of the texts of `source`, as `embed_items`: float32[items, hidden].

    batch_size: rows at once, each of many items. counts: as in `pipeline.batches`, whose examples
    are rows.
    """
    dataset = in_order(
        source,
        mesh,
        batch_size=batch_size,
        length=source.length,
        patches=0,
        targets=source.length,
        suffixes=True,
        workers=workers,
        counts=counts,
        section="config.features",
    )
    first = source.first
    found = np.zeros((int(first[-1]), model.config.text.hidden), np.float32)
    progress = Progress(f"features {name}", len(source), unit="rows")
    compute = mean_of_suffixes(source.most)
    for rows, values in per_row(model, dataset, compute, progress=progress, mesh=mesh):
        for row, vectors in zip(rows, values, strict=True):
            start, end = first[row : row + 2]
            found[start:end] = vectors[: end - start]
    return found


@functools.cache
def mean_of_suffixes(number: int) -> Compute:
    """(model, batch) -> float32[B, number, hidden]: mean of the final hidden states over the tokens
    of each suffix that have a loss weight; zeros where there is none."""

    def compute(model: MLLM, batch: Batch) -> jax.Array:
        assert batch.loss_weights is not None and batch.suffix_ids is not None
        own = jnp.where(batch.loss_weights > 0, batch.suffix_ids, 0)
        of_suffix = own[:, None] == jnp.arange(1, number + 1)[:, None]
        hidden = model(batch)
        total = jnp.einsum("bcl,bld->bcd", of_suffix, hidden, preferred_element_type=jnp.float32)
        return total / jnp.maximum(of_suffix.sum(2), 1)[..., None]

    return compute


def mean_hidden(model: MLLM, batch: Batch) -> jax.Array:
    """Mean of the final hidden states over image slots and tokens with a loss weight: float32[B,
    hidden]; zeros in rows that have neither."""
    assert batch.loss_weights is not None, "prompts say which tokens are read"
    own = batch.loss_weights > 0
    if batch.images is not None:
        own |= (batch.tokens == model.config.image_token_id) & (batch.segment_ids > 0)
    hidden = model(batch)
    total = jnp.einsum("bl,bld->bd", own, hidden, preferred_element_type=jnp.float32)
    return total / jnp.maximum(own.sum(1), 1)[:, None]
