"""What is ranked and measured."""

import dataclasses

from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import Section, seed_setting, setting


@dataclasses.dataclass(frozen=True)
class EvaluationSettings(Section):
    """The test: its users, its candidates, its metrics, and how an MLLM reads them."""

    users: int = setting(
        0, "Size of a random subset of the test users. 0 is all.", low=0, high=1_000_000_000
    )
    negatives: tuple[int, ...] = setting(
        (20,),
        "Negatives of a candidate list; each number is a protocol of its own.",
        low=1,
        high=1_000_000,
    )
    k: tuple[int, ...] = setting(
        (1, 5, 10, 20),
        "Cut-offs of the metrics; ranked lists of the largest are stored.",
        low=1,
        high=1_000_000,
    )
    rerank: int = setting(
        0,
        "The MLLMs reorder so many of the sequential model's best items of the whole catalog, for "
        "rows under the protocol full (ours). 0: no such rows.",
        low=0,
        high=1_000_000,
    )
    fuse: bool = setting(
        False,
        "One more such row: MMSRARec's margin and the sequential model's score, with two weights "
        "fitted on validation (ours).",
    )
    generate: int = setting(
        0,
        "MMSRARec writes the next item's keywords by a beam search of this width in the catalog, "
        "for a row under the protocol full (ours). 0: no such row.",
        low=0,
        high=10_000,
    )
    length: int = setting(8192, "Tokens of a user's history and candidates.", low=1, high=1_000_000)
    patches: int = setting(16384, "Vision patches of the candidates.", low=0, high=1_000_000)
    batch_size: int = setting(32, "Users scored at a time.", low=1, high=1_000_000)
    workers: int = setting(
        8, "Processes that make batches. 0 is threads of the main process.", low=0, high=1024
    )
    seed: int = seed_setting("Of the subset of users and of the negatives.")

    def check(self, name: str) -> None:
        if not self.negatives:
            raise UserError(f"{name}.negatives={self.negatives}: give one number or more")
        if not self.k or max(self.k) > self.list_width:
            raise UserError(
                f"{name}.k={self.k}: give cut-offs of at most {self.list_width}, which is the "
                f"target and {name}.negatives={self.negatives}, or raise the negatives"
            )

    @property
    def list_width(self) -> int:
        """Candidates that an MLLM reads at a time in the joint form: the shortest list. Longer ones
        are read in parts."""
        return 1 + min(self.negatives)
