"""A recommendation head by itself: data -> head -> ranks beside random, popularity, co-occurrence.

The whole catalogue is the headline; frozen sampled candidates stand beside it.
"""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mmsrec_jax.methods import common
from mmsrec_jax.runtime.workdir import Stage


def run(config: ConfigDict, workdir: Path, only: Sequence[str] | None = None) -> None:
    """Runs the stages of `config` in `workdir`, or those named in `only`.

    Raises:
      UserError: anything the user can put right, see the stages.
    """
    common.check(config)
    Run.run(config, workdir, only)


class Run(common.Experiment):
    """One head on one data set."""

    def stages(self) -> list[Stage]:
        c = self.config.evaluation
        settings = {"users": c.users, "negatives": c.negatives, "seed": c.seed, "k": c.k}
        return [
            self.data_stage(),
            *self.head_stages(),
            Stage(
                "evaluation",
                self.evaluation,
                {"evaluation": settings},
                ["data", self.config.head],
            ),
        ]

    def evaluation(self, directory: Path) -> None:
        """Ranks of every system on disk, and the table."""
        board = common.Scoreboard(self, directory)
        systems = board.systems()
        for system in systems:
            board.add_full(system)
        for system in systems:
            board.add_sampled(system)
        board.add_truth()
        board.finish()
