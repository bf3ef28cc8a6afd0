"""Stage-1 rewards (MMSRARec section A): pure functions, one per part, for B items x G summaries.

Each returns float32[B, G] on a scale of about one, higher is better; methods.md gives the sources.
All but the format are deterministic functions of the frozen reference's states and log-probs.
"""

import jax
import jax.numpy as jnp

from mmsrec_jax.prompts import Summary


def information(
    summaries: jax.Array,
    texts: jax.Array,
    written: jax.Array,
    described: jax.Array,
    *,
    center: bool,
) -> jax.Array:
    """R_info = cos(phi(W), phi(text)) in [-1, 1] (paper; phi is ours).

    summaries: float32[B, G, D] and texts: float32[B, D], phi = mean-pooled last hidden states.
    written: bool[B, G], whether there is a keyword; none scores -1. described: bool[B], whether
    the item has text; if not, its summaries score 0.
    center subtracts from each its own batch mean first (ours): raw mean-pooled states of a decoder
    share one dominant direction, so that every cosine is near 1. It also makes a policy that
    writes the same words for every item earn 0.
    """
    shift_summaries = shift_texts = 0.0
    if center:
        shift_summaries = _mean(summaries, written)
        shift_texts = _mean(texts, described)
    summaries, texts = _unit(summaries, shift_summaries), _unit(texts, shift_texts)
    cosine = jnp.einsum("bgd,bd->bg", summaries, texts)
    return jnp.where(described[:, None], jnp.where(written, cosine, -1.0), 0.0)


def reconstruction(given: jax.Array, alone: jax.Array) -> jax.Array:
    """1 - NLL(text | W) / NLL(text), clipped to [-1, 1] (ours): the share of the text's nats that
    the keywords explain.

    given: float32[B, G] and alone: float32[B], summed negative log-likelihoods in nats. An item
    without text (alone = 0) scores 0.
    """
    alone = alone[:, None]
    share = 1.0 - given / jnp.where(alone > 0, alone, 1.0)
    return jnp.where(alone > 0, jnp.clip(share, -1.0, 1.0), 0.0)


def perplexity(given: jax.Array, lengths: jax.Array) -> jax.Array:
    """-PPL(text | W) (paper): unbounded below.

    given: float32[B, G] summed negative log-likelihoods in nats; lengths: int32[B], text tokens.
    """
    lengths = lengths[:, None]
    return jnp.where(lengths > 0, -jnp.exp(given / jnp.maximum(lengths, 1)), 0.0)


def length(counts: jax.Array) -> jax.Array:
    """R_len = -|W| (paper). counts: int[B, G], keywords or tokens; its weight does the scaling."""
    return -jnp.asarray(counts, jnp.float32)


def image(logprobs: jax.Array, present: jax.Array) -> jax.Array:
    """InfoNCE over images, 1 + log p(own image | W) / log(candidates), clipped to [-1, 1] (ours):
    1 when the keywords single their image out, 0 at chance.

    logprobs: float32[B, G, K + 1], log p_ref(W | image); index 0 is the item's own image.
    present: bool[B, K + 1], which of those images exist. An item without an image, or with no
    other image to tell it from, scores 0.
    """
    candidates = jnp.sum(present, axis=-1)
    scored = present[:, 0] & (candidates > 1)
    logits = jnp.where(present[:, None, :], logprobs, -jnp.inf)
    own = logits[..., 0] - jax.nn.logsumexp(jnp.where(scored[:, None, None], logits, 0.0), axis=-1)
    bits = jnp.log(jnp.maximum(candidates, 2).astype(jnp.float32))[:, None]
    return jnp.where(scored[:, None], jnp.clip(1.0 + own / bits, -1.0, 1.0), 0.0)


def form(summary: Summary, *, has_image: bool, has_text: bool) -> float:
    """Share of the format's rules kept, in [0, 1] (ours): the form of `prompts.summary` without a
    keyword twice, a keyword for the image where the item has one, and likewise for the text."""
    rules = [summary.well_formed]
    if has_image:
        rules.append(bool(summary.image))
    if has_text:
        rules.append(bool(summary.text))
    return sum(rules) / len(rules)


def _mean(vectors: jax.Array, kept: jax.Array) -> jax.Array:
    """Mean [D] of vectors[..., D] where `kept`."""
    weights = kept[..., None].astype(jnp.float32)
    axes = tuple(range(kept.ndim))
    return jnp.sum(vectors * weights, axes) / jnp.maximum(jnp.sum(weights, axes), 1.0)


def _unit(vectors: jax.Array, shift: jax.Array | float) -> jax.Array:
    """Unit vectors of `vectors - shift`, 0 where nothing but rounding is left."""
    moved = vectors - shift
    norms = jnp.linalg.norm(moved, axis=-1, keepdims=True)
    kept = norms > 1e-5 * jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return jnp.where(kept, moved / jnp.where(kept, norms, 1.0), 0.0)
