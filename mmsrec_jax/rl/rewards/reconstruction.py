"""Reconstruction reward: the item's text can be told from its keywords."""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.models.batch import text_rows
from mmsrec_jax.prompts import tasks
from mmsrec_jax.rl.rewards.base import Reward
from mmsrec_jax.rl.rewards.context import RewardContext, flat
from mmsrec_jax.rl.rewards.inputs import ItemSummaries, PaddedTexts, pad, stacked
from mmsrec_jax.rl.rewards.settings import RewardSettings


class Reconstruction(Reward):
    """How well the reference predicts the item's text from the keywords: minus its perplexity
    (*paper*), or the share of the text's nats that the keywords explain (*ours*, the default,
    because perplexity has no bound and drowns the other rewards).

    Reads `config.summarizer.reconstruction`, the form.
    """

    name = "reconstruction"
    origin = "paper"
    default_weight = 1.0
    runs_model = True

    def __init__(self, config: RewardSettings, source: SummarySource) -> None:
        super().__init__(config, source)
        self._form, self._word_tokens = config.reconstruction, config.max_new_tokens
        self._chat = source.renderer.prompt_config.chat
        self._templates = source.renderer.prompt_config.templates
        # Tokens may merge differently at the keywords' edges: a little more than the sum.
        self._room = len(self._question("")) + self._word_tokens + 4

    def prepare(self, items: Sequence[ItemSummaries]) -> dict[str, np.ndarray]:
        """Questions for the item's text given each summary's keywords, the last one given none:
        questions int32[B, G + 1, P], lengths int32[B, G + 1]."""
        questions = stacked(
            pad([self._fitting(words) for words in (*item.keywords, "")], self._room)
            for item in items
        )
        return {"questions": questions.tokens, "lengths": questions.lengths}

    def score(self, context: RewardContext) -> jax.Array:
        own, text = context.inputs.own[self.name], context.inputs.text

        def negative_log_likelihood(
            rows: tuple[PaddedTexts[jax.Array], PaddedTexts[jax.Array]],
        ) -> jax.Array:
            """float32[b, G + 1], in nats."""
            questions, text = rows
            count, asked, _ = questions.tokens.shape
            tokens = jnp.repeat(text.tokens, asked, axis=0)[:, None]
            lengths = jnp.repeat(text.lengths, asked)[:, None]
            asking = flat(questions)
            prompts = text_rows(asking.tokens, asking.lengths)
            logprobs = context.logprobs(prompts, tokens, lengths)
            return -jnp.sum(logprobs, axis=(1, 2)).reshape(count, asked)

        questions = PaddedTexts(own["questions"], own["lengths"])
        nll = context.in_microbatches(negative_log_likelihood)((questions, text))
        if self._form == "bounded":
            return share_explained(nll[:, :-1], nll[:, -1])
        return negative_perplexity(nll[:, :-1], text.lengths)

    def _question(self, words: str) -> np.ndarray:
        asked = tasks.align_words(self._templates, words)
        return self._chat.ids(self._chat.head + asked + self._chat.middle)

    def _fitting(self, words: str) -> np.ndarray:
        """The question, with so many of the words that it fits."""
        limit = self._word_tokens
        while len(ids := self._question(words)) > self._room:
            limit //= 2
            words = self._chat.cut(words, limit)[0]
        return ids


def share_explained(given: jax.Array, alone: jax.Array) -> jax.Array:
    """1 - NLL(text | W) / NLL(text), clipped to [-1, 1] (*ours*) -> float32[B, G].

    Args:
      given: float32[B, G], negative log-likelihoods of the text in nats, given the keywords.
      alone: float32[B], without keywords; 0 for an item without text, whose summaries score 0.
    """
    chex.assert_shape(alone, given.shape[:1])
    alone = alone[:, None]
    share = 1.0 - given / jnp.where(alone > 0, alone, 1.0)
    return jnp.where(alone > 0, jnp.clip(share, -1.0, 1.0), 0.0)


def negative_perplexity(given: jax.Array, lengths: jax.Array) -> jax.Array:
    """-PPL(text | W) (*paper*) -> float32[B, G], unbounded below; 0 for an item without text.

    Args:
      given: float32[B, G], negative log-likelihoods of the text in nats.
      lengths: int32[B], tokens of the text.
    """
    chex.assert_shape(lengths, given.shape[:1])
    lengths = lengths[:, None]
    return jnp.where(lengths > 0, -jnp.exp(given / jnp.maximum(lengths, 1)), 0.0)
