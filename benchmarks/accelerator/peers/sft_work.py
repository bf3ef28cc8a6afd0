"""What a train step of both sides works on: packed rows of segments with an image each."""

import dataclasses
from typing import Any

import numpy as np

from benchmarks.accelerator.peers import weights
from benchmarks.accelerator.peers.pieces import Writer
from mmsrec_jax.hf import mapping
from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.inputs import batch as batches
from mmsrec_jax.inputs import example
from mmsrec_jax.models import flops
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.prompts.chat import Piece
from mmsrec_jax.runtime.chips import CHIPS

RANK, ALPHA = 16, 32
# Of AdamW, on both sides.
LEARNING_RATE, BETA2, CLIP = 1e-4, 0.98, 1.0


def tolerance(tiny: bool) -> float:
    """Relative, of losses at the start; tiny is float32, else bfloat16."""
    return 2e-5 if tiny else 1e-2


def norm_tolerance(tiny: bool) -> float:
    """The same of norms of gradients: autocast keeps the residual stream in float32, ours does
    not."""
    return 2e-5 if tiny else 5e-2


@dataclasses.dataclass(frozen=True)
class Sizes:
    """rows: segments of each packed row; images: sizes in pixels, in turn."""

    length: int
    rows: tuple[int, ...]
    targets: int
    images: tuple[tuple[int, int], ...]


SIZES = Sizes(4096, (4, 5, 4, 5), 64, ((448, 448), (560, 448), (560, 560)))
TINY = Sizes(128, (2, 3), 4, ((56, 56), (84, 56)))


@dataclasses.dataclass(frozen=True)
class Segment:
    """A prompt with an image, and the answer int32[targets] that is learned."""

    prompt: Piece
    answer: np.ndarray

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclasses.dataclass(frozen=True)
class Work:
    """rows: the segments of each packed row."""

    sizes: Sizes
    rows: list[list[Segment]]
    processor: ImageProcessor

    @property
    def segments(self) -> list[Segment]:
        return [segment for row in self.rows for segment in row]

    @property
    def tokens(self) -> int:
        """Without padding."""
        return sum(map(len, self.segments))

    def batch(self) -> Batch:
        """The packed rows, as the input pipeline collates them."""
        examples = [[example.sequence(s.prompt, s.answer) for s in row] for row in self.rows]
        patches = max(sum(each.num_patches for each in row) for row in examples)
        room = batches.Room(
            rows=len(examples),
            length=self.sizes.length,
            targets=self.sizes.targets * max(self.sizes.rows),
            patches=-(-patches // 128) * 128,
            patch_width=examples[0][0].images[0]["patches"].shape[1],
        )
        return batches.collate(examples, room)

    def flops(self, tiny: bool, adapters: bool) -> int:
        """Of a step; tokens attend to their segment. More than is needed for the tokens of other
        segments does not count for a side that computes it."""
        config = mapping.config_from_hf(weights.config(tiny) | {"model_type": "qwen2_5_vl"})
        lora = flops.Adapters(RANK) if adapters else None
        rows = [
            flops.Row(len(s), len(s.answer), [image["grid"] for image in s.prompt.images])
            for s in self.segments
        ]
        return sum(sum(flops.train_step(config, row, lora).values()) for row in rows)


def work(tiny: bool) -> Work:
    """Segments that fill each row but for a few tokens; their lengths differ by up to a fifth."""
    sizes = TINY if tiny else SIZES
    writer, rng = Writer(weights.config(tiny), seed=1), np.random.default_rng(2)
    rows, count = [], 0
    for segments in sizes.rows:
        even = sizes.length // segments
        row = []
        for _ in range(segments):
            length = even - int(rng.integers(0, even // 10 + 1))
            image = sizes.images[count % len(sizes.images)]
            prompt = writer.piece(length - sizes.targets, image)
            row.append(Segment(prompt, writer.words(sizes.targets)))
            count += 1
        rows.append(row)
    return Work(sizes, rows, writer.processor)


def speeds(
    work: Work, seconds: float, tiny: bool, *, adapters: bool, device: str
) -> dict[str, Any]:
    """What a step of so many seconds is; MFU where the peak of the device is known.

    device: as its maker calls it.
    """
    row: dict[str, Any] = {"seconds": seconds, "tokens_per_second": work.tokens / seconds}
    if "H100" in device or "H200" in device:  # the same chip with more memory
        row["mfu"] = work.flops(tiny, adapters) / seconds / CHIPS["h100"].flops
    return row
