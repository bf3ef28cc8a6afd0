"""A sequential recommender by itself: data -> model -> ranks beside random, popularity,
co-occurrence.

The whole catalog is the headline; frozen sampled candidates stand beside it.
"""

from pathlib import Path

from mmsrec_jax.methods.experiment import Experiment
from mmsrec_jax.runtime.workdir import Step


class Sequential(Experiment):
    """One model on one data set."""

    def steps(self) -> list[Step]:
        c = self.config.evaluation
        settings = {"users": c.users, "negatives": c.negatives, "seed": c.seed, "k": c.k}
        inputs = ["data", self.config.sequential_model]
        return [
            self.data_step(),
            *self.sequential_steps(),
            Step("evaluation", self.evaluation, {"evaluation": settings}, inputs),
        ]

    def evaluation(self, directory: Path) -> None:
        """Ranks of every system on disk, and the table."""
        board = self.leaderboard(directory)
        systems = [*board.baselines(), self.recommender()]
        for system in systems:
            board.add_full(system)
        for system in systems:
            board.add_sampled(system)
        board.add_truth(self.world())
        board.finish(self.workdir / "table.json")
