"""Item features from an MLLM: hidden states of each item's own tokens, pooled."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mmsrec_jax.inference.forward import in_order, per_row
from mmsrec_jax.inputs.item_prompts import ContentSource
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
    )
    found = np.zeros((len(source), model.config.text.hidden), np.float32)
    progress = Progress(f"features {name}", len(source), unit="items")
    for items, values in per_row(model, dataset, mean_hidden, progress=progress, mesh=mesh):
        found[items] = values
    return found


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
