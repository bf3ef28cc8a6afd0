"""Candidates scored by the yes/no label.

The paper (MMSRARec, stage 3) scores by p(yes) / (p(yes) + p(no)). The normalizer over the
vocabulary cancels, so that this is the sigmoid of logit(yes) - logit(no), the margin given here.
"""

import jax
import jax.numpy as jnp

from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime.sharding import constrain, weight


def yes_no_margins(
    model: MLLM, hidden: jax.Array, positions: jax.Array, yes_no_ids: tuple[int, int]
) -> jax.Array:
    """float32[B, C] logit(yes) - logit(no) after hidden[b, positions[b, c]]; meaningless at -1.

    Reads two columns of the head at C positions.

    Args:
      hidden: [B, L, hidden] of `model`, final-normed.
      positions: int32[B, C], tokens whose next token is the label (`Batch.answer_positions`).
      yes_no_ids: ids (yes, no).
    """
    chosen = jnp.take_along_axis(hidden, jnp.maximum(positions, 0)[..., None], axis=1)
    return margins_after(model, chosen, yes_no_ids)


def margins_after(model: MLLM, hidden: jax.Array, yes_no_ids: tuple[int, int]) -> jax.Array:
    """float32[B, C] logit(yes) - logit(no) after each of `hidden` [B, C, hidden]."""
    text, (yes, no) = model.text, yes_no_ids
    head = text.embed.embedding[...].T if text.head is None else text.head.kernel[...]
    direction = head[:, yes].astype(jnp.float32) - head[:, no].astype(jnp.float32)
    direction = weight(direction, ("embed",), ("features",))
    hidden = constrain(hidden, "batch", "length", "features")
    return jnp.einsum(
        "bcd,d->bc", hidden.astype(jnp.float32), direction, precision=jax.lax.Precision.HIGHEST
    )
