"""Format reward: the summary can be parsed, and speaks of all that its item has."""

from collections.abc import Sequence

import jax
import numpy as np

from mmsrec_jax.prompts import Summary
from mmsrec_jax.rl.rewards.base import Reward
from mmsrec_jax.rl.rewards.context import RewardContext
from mmsrec_jax.rl.rewards.inputs import ItemSummaries


class Format(Reward):
    """Share of the format's rules that a summary keeps, in [0, 1] (*ours*). Counted on the host."""

    name = "format"
    origin = "ours"
    default_weight = 0.5
    runs_model = False

    def prepare(self, items: Sequence[ItemSummaries]) -> dict[str, np.ndarray]:
        """kept float32[B, G]."""
        kept = [
            [
                rules_kept(s, has_image=item.image is not None, has_text=bool(item.text))
                for s in item.summaries
            ]
            for item in items
        ]
        return {"kept": np.array(kept, np.float32)}

    def score(self, context: RewardContext) -> jax.Array:
        return context.inputs.own[self.name]["kept"]


def rules_kept(summary: Summary, *, has_image: bool, has_text: bool) -> float:
    """The rules: the form of `prompts.summary` with no keyword twice; a keyword for the image where
    the item has one; a keyword for the text where it has one."""
    rules = [summary.well_formed]
    if has_image:
        rules.append(bool(summary.image))
    if has_text:
        rules.append(bool(summary.text))
    return sum(rules) / len(rules)
