"""Rewards of summaries. A new one is a file here and its class in `REWARDS`, which gives it a field
in `config.summarizer.weights` too."""

from collections.abc import Mapping

from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.rl.rewards.base import Reward
from mmsrec_jax.rl.rewards.format import Format
from mmsrec_jax.rl.rewards.image_contrastive import ImageContrastive
from mmsrec_jax.rl.rewards.length import Length
from mmsrec_jax.rl.rewards.reconstruction import Reconstruction
from mmsrec_jax.rl.rewards.semantic import Semantic
from mmsrec_jax.rl.rewards.settings import RewardSettings
from mmsrec_jax.rl.rewards.weighted import WeightedRewards
from mmsrec_jax.runtime.errors import UserError

# The total is summed in this order: another one gives other bits.
REWARDS: dict[str, type[Reward]] = {
    "semantic": Semantic,
    "length": Length,
    "format": Format,
    "reconstruction": Reconstruction,
    "image_contrastive": ImageContrastive,
}


def make_rewards(
    weights: Mapping[str, float], config: RewardSettings, source: SummarySource
) -> WeightedRewards:
    """The rewards that `weights` names. One of weight 0 is not in the total; it is computed,
    for its metrics, only if that needs no forward pass.

    Args:
      weights: `config.summarizer.weights`.
      config: `config.summarizer`.
      source: prompts of the items that are summarized.

    Raises:
      UserError: a weight without a reward, no weight but 0, or a setting that a reward refuses.
    """
    for name in weights:
        if name not in REWARDS:
            raise UserError(
                f"config.summarizer.weights.{name}: no such reward; there are {', '.join(REWARDS)}"
            )
    weights = {name: float(weights[name]) for name in REWARDS if name in weights}
    if not any(weights.values()):
        raise UserError("config.summarizer.weights: at least one must not be 0")
    computed = {
        name: REWARDS[name](config, source)
        for name, weight in weights.items()
        if weight or not REWARDS[name].runs_model
    }
    return WeightedRewards(computed, weights, source.renderer, word_tokens=config.max_new_tokens)
