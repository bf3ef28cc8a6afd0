"""A sequential recommender by itself: data -> model -> ranks beside random, popularity,
co-occurrence.

The whole catalog is the headline; frozen sampled candidates stand beside it.
"""

from pathlib import Path

from mmsrec_jax.methods import features
from mmsrec_jax.methods.mllm import MLLMExperiment
from mmsrec_jax.runtime.workdir import Step


class Sequential(MLLMExperiment):
    """One model or more on one data set; one that reads features of an MLLM has its base model
    too."""

    def steps(self) -> list[Step]:
        c = self.config.evaluation
        settings = {"users": c.users, "negatives": c.negatives, "seed": c.seed, "k": c.k}
        models = self.config.sequential_models
        inputs = ["data", *models]
        base = self.base_steps() if features.to_make(self.config, *models) else []
        return [
            self.data_step(),
            *base,
            *self.sequential_steps(),
            self.evaluation_step({"evaluation": settings}, inputs),
        ]

    def evaluation(self, directory: Path) -> None:
        """Ranks of every system on disk, and the table."""
        board = self.leaderboard(directory)
        systems = [*board.baselines(), *map(self.recommender, self.config.sequential_models)]
        for system in systems:
            board.add(system)
        board.add_truth(self.world())
        board.finish()
