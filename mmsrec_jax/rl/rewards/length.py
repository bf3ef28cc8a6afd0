"""Length reward: fewer keywords are better."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.rl.rewards.base import Reward
from mmsrec_jax.rl.rewards.context import RewardContext
from mmsrec_jax.rl.rewards.inputs import ItemSummaries
from mmsrec_jax.rl.rewards.settings import RewardSettings


class Length(Reward):
    """R_len = -|W|, keywords with their repetitions (*paper*) or tokens (*ours*).

    Reads `config.summarizer.length`, the unit. The weight does the scaling.
    """

    name = "length"
    origin = "paper"
    default_weight = 0.02
    runs_model = False

    def __init__(self, config: RewardSettings, source: SummarySource) -> None:
        super().__init__(config, source)
        self._unit = config.length

    def prepare(self, items: Sequence[ItemSummaries]) -> dict[str, np.ndarray]:
        """keywords int32[B, G], how many were written."""
        counts = [[len(s.image) + len(s.text) for s in item.summaries] for item in items]
        return {"keywords": np.array(counts, np.int32)}

    def score(self, context: RewardContext) -> jax.Array:
        inputs = context.inputs
        counted = {"keywords": inputs.own[self.name]["keywords"], "tokens": inputs.keywords.lengths}
        return -jnp.asarray(counted[self._unit], jnp.float32)
