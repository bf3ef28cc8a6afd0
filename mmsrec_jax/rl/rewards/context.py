"""What rewards read on the device. The reference is the model with its adapters off: there is no
second copy of the weights."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmsrec_jax.inference.suffixes import suffix_logprobs
from mmsrec_jax.models.batch import Batch, text_rows
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.rl.rewards.inputs import PaddedTexts, RewardInputs
from mmsrec_jax.runtime.microbatch import map_microbatches


class RewardContext:
    """The inputs of all rewards, and what several of them compute: once, for the first that asks.

    Attributes:
      prompts: of the B items, with their images.
      inputs: what the host prepared.
    """

    def __init__(
        self, model: MLLM, prompts: Batch, inputs: RewardInputs[jax.Array], num_microbatches: int
    ) -> None:
        self.prompts, self.inputs = prompts, inputs
        self._model, self._num_microbatches = model, num_microbatches

    def in_microbatches(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`function` over arrays with first axis B, a few items at a time, to bound memory."""
        return map_microbatches(function, self._num_microbatches)

    def logprobs(self, prompts: Batch, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        """The reference's log-probabilities float32[N, C, T] of C continuations of each prompt, 0
        past their lengths; see `suffix_logprobs`."""
        return suffix_logprobs(self._model, prompts, tokens, lengths, adapters=False)

    @functools.cached_property
    def keyword_states(self) -> jax.Array:
        """phi(W), float32[B, G, D], of the keywords of each summary."""

        def read(keywords: PaddedTexts[jax.Array]) -> jax.Array:
            rows, group, _ = keywords.tokens.shape
            return self._mean_states(flat(keywords)).reshape(rows, group, -1)

        return self.in_microbatches(read)(self.inputs.keywords)

    @functools.cached_property
    def text_states(self) -> jax.Array:
        """phi(text), float32[B, D], of the text of each item."""
        return self.in_microbatches(self._mean_states)(self.inputs.text)

    def _mean_states(self, texts: PaddedTexts[jax.Array]) -> jax.Array:
        """phi (*ours*): float32[N, D], the mean of the last hidden states; 0 for an empty text."""
        batch = text_rows(texts.tokens, texts.lengths)
        hidden = self._model(batch, adapters=False).astype(jnp.float32)
        inside = batch.segment_ids[..., None] > 0
        total = jnp.sum(jnp.where(inside, hidden, 0.0), 1)
        return total / jnp.maximum(texts.lengths, 1)[:, None]


def flat(texts: PaddedTexts[jax.Array]) -> PaddedTexts[jax.Array]:
    """[B, G, ...] -> [B * G, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), texts)
