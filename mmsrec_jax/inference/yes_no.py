"""Candidates scored by the yes/no label: p(yes) / (p(yes) + p(no)) (MMSRARec, stage 3)."""

import jax
import jax.numpy as jnp

from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.batch_tree import check_shapes
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime.sharding import constrain, weight


def yes_no_scores(
    model: MLLM, batch: Batch, yes_id: int, no_id: int, *, adapters: bool = True
) -> jax.Array:
    """float32[B, C] in [0, 1]: p(yes) / (p(yes) + p(no)); -inf where answer_positions is -1.

    batch: with answer_positions int32[B, C], the tokens whose next token is the yes/no label.
    Pure and jit-friendly: one forward, and only two columns of the head at C positions.
    """
    check_shapes(batch, "answer_positions")
    positions = batch.answer_positions
    hidden = model(batch, adapters=adapters)
    # The normalizer over the vocabulary cancels in the ratio.
    scores = jax.nn.sigmoid(yes_no_margins(model, hidden, positions, (yes_id, no_id)))
    return jnp.where(positions >= 0, scores, -jnp.inf)


def yes_no_margins(
    model: MLLM, hidden: jax.Array, positions: jax.Array, yes_no_ids: tuple[int, int]
) -> jax.Array:
    """float32[B, C] logit(yes) - logit(no) after hidden[b, positions[b, c]]; meaningless at -1.

    yes_no_ids: ids (yes, no).
    """
    text, (yes, no) = model.text, yes_no_ids
    head = text.embed.embedding[...].T if text.head is None else text.head.kernel[...]
    direction = head[:, yes].astype(jnp.float32) - head[:, no].astype(jnp.float32)
    direction = weight(direction, ("embed",), ("features",))
    chosen = jnp.take_along_axis(hidden, jnp.maximum(positions, 0)[..., None], axis=1)
    chosen = constrain(chosen, "batch", "length", "features")
    return jnp.einsum(
        "bcd,d->bc", chosen.astype(jnp.float32), direction, precision=jax.lax.Precision.HIGHEST
    )
