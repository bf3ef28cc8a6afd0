"""Stage-1 rewards (MMSRARec section A): pure functions, one per part, for B items x G summaries.

Each returns float32[B, G] on a scale of about one, higher is better; methods.md gives the sources.
All but the format are deterministic functions of the frozen reference's states and log-probs.
"""

import jax
import jax.numpy as jnp
import numpy as np


def information(summaries: jax.Array, texts: jax.Array, *, center: bool) -> jax.Array:
    """R_info = cos(phi(W), phi(text)) in [-1, 1] (paper; phi is ours).

    summaries: float32[B, G, D] and texts: float32[B, D], phi = mean-pooled last hidden states.
    center subtracts from each its own batch mean first (ours): raw mean-pooled states of a decoder
    share one dominant direction, so that every cosine is near 1. It also makes a policy that
    writes the same words for every item earn 0.
    """
    shift = (jnp.mean(summaries, axis=(0, 1)), jnp.mean(texts, axis=0)) if center else (0.0, 0.0)
    summaries, texts = _unit(summaries, shift[0]), _unit(texts, shift[1])
    return jnp.einsum("bgd,bd->bg", summaries, texts)


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


def well_formed(
    image_keywords: list[str], text_keywords: list[str], *, has_image: bool, has_text: bool
) -> float:
    """Share of the format's rules kept, in [0, 1] (ours): no keyword twice (case ignored), at least
    one keyword for the image where the item has one, and likewise for the text.

    Call it on parseable summaries; an unparseable one scores 0.
    """
    keywords = [word.casefold() for word in (*image_keywords, *text_keywords)]
    rules = [bool(keywords) and len(set(keywords)) == len(keywords)]
    if has_image:
        rules.append(bool(image_keywords))
    if has_text:
        rules.append(bool(text_keywords))
    return float(np.mean(rules))


def _unit(vectors: jax.Array, shift: jax.Array | float) -> jax.Array:
    """Unit vectors of `vectors - shift`, 0 where nothing but rounding is left."""
    moved = vectors - shift
    norms = jnp.linalg.norm(moved, axis=-1, keepdims=True)
    kept = norms > 1e-5 * jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return jnp.where(kept, moved / jnp.where(kept, norms, 1.0), 0.0)
