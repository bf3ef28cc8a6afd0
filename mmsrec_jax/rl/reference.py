"""The frozen reference as judge: adapters off, no second copy of the weights."""

import jax
import jax.numpy as jnp

from mmsrec_jax.inference.suffixes import suffix_logprobs
from mmsrec_jax.models.batch import Batch, text_rows
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.rl import rewards
from mmsrec_jax.runtime.microbatch import map_microbatches

PARTS = ("information", "reconstruction", "length", "image", "form")


def scores(
    model: MLLM,
    batch: Batch,
    texts: dict[str, jax.Array],
    *,
    length: str,
    reconstruction: str,
    center: bool,
    distractors: int,
    num_microbatches: int,
) -> dict[str, jax.Array]:
    """Every reward part of B x G summaries -> name -> float32[B, G]; see `rewards.parts`.

    Args:
      batch: the prompts, for their images.
      texts: `reward_inputs.RewardInputs.arrays`.
      length: what it counts, "keywords" (paper) or "tokens".
      reconstruction: "bounded" or "perplexity".
      center: see `rewards.information`.
      distractors: other images of the batch that a summary is told from, the next ones in it;
        0 = no image part.
      num_microbatches: the batch is worked through in so many parts, to bound memory.
    """
    rows = map_microbatches(lambda texts: _read(model, texts), num_microbatches)(texts)
    text_lengths = texts["text_lengths"]
    scored = {
        "information": rewards.information(
            rows["words"], rows["text"], texts["words_lengths"] > 0, text_lengths > 0, center=center
        ),
        "length": rewards.length(texts["keywords" if length == "keywords" else "words_lengths"]),
        "form": texts["form"],
    }
    if reconstruction == "bounded":
        scored["reconstruction"] = rewards.reconstruction(rows["nll"][:, :-1], rows["nll"][:, -1])
    else:
        scored["reconstruction"] = rewards.perplexity(rows["nll"][:, :-1], text_lengths)
    if distractors:
        scored["image"] = _told_apart(model, batch, texts, distractors, num_microbatches)
    return scored


def _read(model: MLLM, texts: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """phi of words [B, G, D] and text [B, D]; nll [B, G + 1], -log p(text | keywords)."""
    rows, samples, _ = texts["words"].shape
    words = _mean_states(model, _flat(texts["words"]), _flat(texts["words_lengths"]))
    ask = text_rows(_flat(texts["ask"]), _flat(texts["ask_lengths"]))
    text = jnp.repeat(texts["text"], samples + 1, axis=0)[:, None]
    lengths = jnp.repeat(texts["text_lengths"], samples + 1)[:, None]
    logprobs = suffix_logprobs(model, ask, text, lengths, adapters=False)
    return {
        "words": words.reshape(rows, samples, -1),
        "text": _mean_states(model, texts["text"], texts["text_lengths"]),
        "nll": -jnp.sum(logprobs, axis=(1, 2)).reshape(rows, samples + 1),
    }


def _told_apart(
    model: MLLM,
    batch: Batch,
    texts: dict[str, jax.Array],
    distractors: int,
    num_microbatches,
) -> jax.Array:
    """Image j reads the image lines of items j, j - 1, ..., j - K as suffixes of one prompt."""
    rows, samples, steps = texts["image_line"].shape
    candidates = distractors + 1

    def shifted(x, sign):
        """[B, K + 1, ...]: x of rows b + sign * k."""
        return jnp.stack([jnp.roll(x, -sign * k, axis=0) for k in range(candidates)], axis=1)

    prefix = Batch(
        tokens=texts["image_tokens"],
        positions=texts["image_positions"],
        segment_ids=texts["image_segments"],
        images=batch.images,
    )
    lines = shifted(texts["image_line"], -1).reshape(rows, -1, steps)
    lengths = shifted(texts["image_line_lengths"], -1).reshape(rows, -1)

    def read(arguments):
        return jnp.sum(suffix_logprobs(model, *arguments, adapters=False), axis=-1)

    logprobs = map_microbatches(read, num_microbatches)((prefix, lines, lengths))
    # [j, k, g] is item j - k under image j; item i under image i + k is [i + k, k, g].
    logprobs = logprobs.reshape(rows, candidates, samples)
    own = jnp.stack([jnp.roll(logprobs[:, k], -k, axis=0) for k in range(candidates)], axis=-1)
    return rewards.image(own, shifted(texts["has_image"], 1))


def _mean_states(model: MLLM, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """phi: float32[N, D], the mean of the last hidden states; 0 for an empty text."""
    batch = text_rows(tokens, lengths)
    hidden = model(batch, adapters=False).astype(jnp.float32)
    inside = batch.segment_ids[..., None] > 0
    return jnp.sum(jnp.where(inside, hidden, 0.0), 1) / jnp.maximum(lengths, 1)[:, None]


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(-1, *x.shape[2:])
