"""Several rewards and their weighted sum."""

from collections.abc import Mapping, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mmsrec_jax.inputs.item_renderer import ItemRenderer
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.prompts import Summary
from mmsrec_jax.rl.rewards.base import Reward
from mmsrec_jax.rl.rewards.context import RewardContext
from mmsrec_jax.rl.rewards.inputs import RewardInputs, read_items, shared_inputs


class WeightedRewards:
    """`rewards` by name, in the order in which their total is summed.

    Args:
      rewards: those that are computed.
      weights: of each; one of weight 0 is left out of the total.
      renderer: texts, images and sentences of the catalog.
      word_tokens: room Tw for a summary's keywords; a longer one loses its tail.
    """

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        weights: Mapping[str, float],
        renderer: ItemRenderer,
        *,
        word_tokens: int,
    ) -> None:
        self._rewards, self._weights, self._renderer = rewards, weights, renderer
        self._word_tokens = word_tokens

    def prepare(
        self, index: np.ndarray, summaries: Sequence[Sequence[Summary]]
    ) -> RewardInputs[np.ndarray]:
        """What the rewards read of these summaries, on the host; the same shapes for every batch.

        index: int[B], items; summaries: G for each.
        """
        items = read_items(self._renderer, index, summaries, word_tokens=self._word_tokens)
        own = {name: reward.prepare(items) for name, reward in self._rewards.items()}
        config = self._renderer.prompt_config
        return shared_inputs(config, items, own, word_tokens=self._word_tokens)

    def score(
        self,
        model: MLLM,
        prompts: Batch,
        inputs: RewardInputs[jax.Array],
        *,
        num_microbatches: int,
    ) -> dict[str, jax.Array]:
        """Each reward by name and their weighted sum, "total": float32[B, G]. Pure.

        Args:
          model: the reference is this model with its adapters off.
          prompts: of the B items, for their images.
          inputs: `prepare`'s.
          num_microbatches: the batch is worked through in so many parts, to bound memory.
        """
        chex.assert_tree_shape_prefix((prompts, inputs), inputs.text.lengths.shape)
        context = RewardContext(model, prompts, inputs, num_microbatches)
        scores = {name: reward.score(context) for name, reward in self._rewards.items()}
        chex.assert_shape(list(scores.values()), inputs.keywords.lengths.shape)
        chex.assert_type(list(scores.values()), jnp.float32)
        terms = (self._weights[name] * s for name, s in scores.items() if self._weights[name])
        return scores | {"total": jnp.asarray(sum(terms))}
