"""Prompts of items with an image, whose summaries both sides write."""

import dataclasses
from collections.abc import Sequence

from benchmarks.accelerator.peers import weights
from benchmarks.accelerator.peers.pieces import Writer
from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.prompts.chat import Piece

KEPT = "rollouts_ours"  # what our side leaves for theirs, see `side.keep`


@dataclasses.dataclass(frozen=True)
class Prompts:
    """samples: of every prompt; new_tokens: of every sample, none of which ends earlier."""

    pieces: Sequence[Piece]
    samples: int
    new_tokens: int
    suppress: tuple[int, ...]
    processor: ImageProcessor

    @property
    def tokens(self) -> int:
        """New ones of a call."""
        return len(self.pieces) * self.samples * self.new_tokens


def prompts(tiny: bool) -> Prompts:
    """16 items, an image of 256 slots and 58 to 88 tokens of text each; tiny: 3 and 4 slots."""
    writer = Writer(weights.config(tiny), seed=3)
    items, samples, new, size = (3, 4, 8, (56, 56)) if tiny else (16, 8, 48, (448, 448))
    longest = 24 if tiny else 346
    pieces = [writer.piece(longest - 2 * (i % (4 if tiny else 16)), size) for i in range(items)]
    return Prompts(pieces, samples, new, writer.image_tokens, writer.processor)
