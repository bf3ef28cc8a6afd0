"""What a reward is."""

import abc
from collections.abc import Sequence
from typing import ClassVar, Literal

import jax
import numpy as np

from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.rl.rewards.context import RewardContext
from mmsrec_jax.rl.rewards.inputs import ItemSummaries
from mmsrec_jax.rl.rewards.settings import RewardSettings


class Reward(abc.ABC):
    """One number for every summary, on a scale of about one; higher is better.

    Class attributes:
      name: key of its weight in `config.summarizer.weights`, and of its metric `reward/<name>`.
      origin: whose idea it is, the paper's or ours.
      default_weight: of the reward in the total.
      runs_model: `score` needs a forward pass of the reference model. Such a reward is not computed
        at weight 0; the others are, because their metrics cost nothing.
    """

    name: ClassVar[str]
    origin: ClassVar[Literal["paper", "ours"]]
    default_weight: ClassVar[float]
    runs_model: ClassVar[bool]

    def __init__(self, config: RewardSettings, source: SummarySource) -> None:
        """Keeps what it needs of the settings.

        Args:
          config: `config.summarizer`.
          source: prompts of the items, with the tokenizer, the sentences and the images.

        Raises:
          UserError: a setting with which this reward cannot be computed.
        """
        del config, source

    def prepare(self, items: Sequence[ItemSummaries]) -> dict[str, np.ndarray]:
        """Arrays by name that only this reward reads, with first axis B and the same shapes for
        every batch; `score` finds them in `context.inputs.own[name]`. Runs on the host.

        items: B of them, those of this process.
        """
        del items
        return {}

    @abc.abstractmethod
    def score(self, context: RewardContext) -> jax.Array:
        """float32[B, G], traced into a compiled function."""
