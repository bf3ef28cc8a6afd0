"""What GRPO is told: the rollout, the rewards and the update."""

import dataclasses
from collections.abc import Mapping

from mmsrec_jax.rl.rewards import REWARDS
from mmsrec_jax.rl.rewards.settings import RewardSettings
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import seed_setting, setting


@dataclasses.dataclass(frozen=True)
class GRPOSettings(RewardSettings):
    """Stage 1: GRPO with verifiable rewards."""

    steps: int = setting(500, "Rollouts.", low=1, high=1_000_000_000)
    batch_size: int = setting(64, "Items of a rollout.", low=1, high=1_000_000)
    num_generations: int = setting(
        8, "Summaries of an item: the group of an advantage.", low=2, high=10_000
    )
    prompt_length: int = setting(1024, "Tokens of a prompt.", low=1, high=1_000_000)
    patches: int = setting(4096, "Vision patches of a prompt.", low=0, high=1_000_000)
    temperature: float = setting(1.0, "Of the sampling.", low=0.01, high=100)
    top_k: int = setting(
        0, "Samples are drawn from the k likeliest tokens. 0 is all.", low=0, high=10_000_000
    )
    top_p: float = setting(
        1.0, "Samples are drawn from the likeliest tokens of this mass. 1 is all.", low=1e-6, high=1
    )
    gather_weights: bool = setting(
        True,
        "Gather sharded weights once a rollout, not once a token. False where they do not fit.",
        recorded=False,
    )
    micro_batch: int = setting(
        64,
        "Completions of one backward pass; a multiple of `num_generations`.",
        low=1,
        high=1_000_000,
    )
    updates_per_rollout: int = setting(
        1, "Updates on the summaries of a rollout.", low=1, high=1000
    )
    clip_epsilon: float = setting(
        0.2, "The probability ratio is clipped to 1 - epsilon and 1 + epsilon.", above=0, below=1
    )
    kl_coef: float = setting(0.02, "Weight of the divergence from the reference.", low=0, high=1000)
    scale_by_std: bool = setting(
        True, "Divide advantages by the standard deviation of their group."
    )
    lora_rank: int = setting(16, "Rank of the adapters.", low=1, high=10_000)
    lora_alpha: float = setting(
        32.0, "Adapters are scaled by this, divided by the rank.", low=0.001, high=100_000
    )
    learning_rate: float = setting(1e-5, "Constant after the warm-up (AdamW).", low=1e-10, high=1)
    warmup_steps: int = setting(
        20, "Updates until the learning rate is reached.", low=0, high=1_000_000_000
    )
    weight_decay: float = setting(0.0, "Of AdamW.", low=0, high=10)
    clip_norm: float = setting(1.0, "Largest global norm of a gradient.", low=1e-6, high=1_000_000)
    weights: Mapping[str, float] = setting(
        {name: reward.default_weight for name, reward in REWARDS.items()},
        "Of the rewards: semantic, reconstruction and length are the paper's alpha, beta and "
        "gamma. 0 turns a reward off.",
        low=0,
        high=1000,
    )
    input_shards: int = setting(
        0,
        "Parts in which batches are packed; see `input_shards`.",
        follows="input_shards",
        low=0,
        high=100_000,
    )
    workers: int = setting(
        8,
        "Processes that make batches, for each part. 0 is threads of the main process.",
        low=0,
        high=1024,
    )
    checkpoint_every: int = setting(50, "Steps between two checkpoints.", low=1, high=1_000_000_000)
    log_every: int = setting(10, "Steps between two lines of metrics.", low=1, high=1_000_000_000)
    seed: int = seed_setting("Of adapters, order and samples.")

    @property
    def num_microbatches(self) -> int:
        """How many backward passes an update takes."""
        return self.batch_size * self.num_generations // self.micro_batch

    def check(self, name: str) -> None:
        group, micro_batch = self.num_generations, self.micro_batch
        if micro_batch % group:
            raise UserError(
                f"{name}.micro_batch={micro_batch} would split a group of "
                f"{name}.num_generations={group}; make it a multiple"
            )
        completions = self.batch_size * group
        if completions % micro_batch:
            raise UserError(
                f"{name}.micro_batch={micro_batch} does not divide "
                f"{name}.batch_size * num_generations = {completions}"
            )
        if not any(self.weights.values()):
            raise UserError(f"{name}.weights: all are 0; give one reward or more a weight above 0")
        if self.weights.get("image_contrastive") and self.distractors >= self.batch_size:
            raise UserError(
                f"{name}.distractors={self.distractors} must be below "
                f"{name}.batch_size={self.batch_size}"
            )
