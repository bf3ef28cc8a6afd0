"""Semantic reward: the keywords mean what the item's text means."""

import chex
import jax
import jax.numpy as jnp

from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.rl.rewards.base import Reward
from mmsrec_jax.rl.rewards.context import RewardContext
from mmsrec_jax.rl.rewards.settings import RewardSettings


class Semantic(Reward):
    """R_info = cos(phi(W), phi(text)) (*paper*); phi = mean last hidden state of the reference
    (*ours*).

    Reads `config.summarizer.center`.
    """

    name = "semantic"
    origin = "paper"
    default_weight = 1.0
    runs_model = True

    def __init__(self, config: RewardSettings, source: SummarySource) -> None:
        super().__init__(config, source)
        self._center = config.center

    def score(self, context: RewardContext) -> jax.Array:
        inputs = context.inputs
        return cosine(
            context.keyword_states,
            context.text_states,
            inputs.keywords.lengths > 0,
            inputs.text.lengths > 0,
            center=self._center,
        )


def cosine(
    keywords: jax.Array,
    texts: jax.Array,
    has_keywords: jax.Array,
    has_text: jax.Array,
    *,
    center: bool,
) -> jax.Array:
    """float32[B, G] in [-1, 1]: cosine of each summary's state and its item's.

    Args:
      keywords: float32[B, G, D].
      texts: float32[B, D].
      has_keywords: bool[B, G]; a summary without keywords scores -1.
      has_text: bool[B]; summaries of an item without text score 0.
      center: subtracts from each its own mean over the batch first (*ours*). Mean states of a
        decoder share one dominant direction, so that every cosine is near 1 without it. With it, a
        policy that writes the same words for every item earns 0.
    """
    chex.assert_equal_shape_prefix([keywords, has_keywords], 2)
    chex.assert_shape(texts, (keywords.shape[0], keywords.shape[2]))
    keyword_mean = _mean(keywords, has_keywords) if center else 0.0
    text_mean = _mean(texts, has_text) if center else 0.0
    keywords, texts = _unit(keywords, keyword_mean), _unit(texts, text_mean)
    found = jnp.einsum("bgd,bd->bg", keywords, texts)
    return jnp.where(has_text[:, None], jnp.where(has_keywords, found, -1.0), 0.0)


def _mean(vectors: jax.Array, kept: jax.Array) -> jax.Array:
    """Mean [D] of vectors[..., D] where `kept`."""
    weights = kept[..., None].astype(jnp.float32)
    axes = tuple(range(kept.ndim))
    return jnp.sum(vectors * weights, axes) / jnp.maximum(jnp.sum(weights, axes), 1.0)


def _unit(vectors: jax.Array, mean: jax.Array | float) -> jax.Array:
    """Unit vectors of `vectors - mean`, 0 where nothing but rounding is left."""
    centered = vectors - mean
    norms = jnp.linalg.norm(centered, axis=-1, keepdims=True)
    kept = norms > 1e-5 * jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return jnp.where(kept, centered / jnp.where(kept, norms, 1.0), 0.0)
