"""The one collator: rows of examples to a batch of static shapes."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mmsrec_jax.inputs.example import Example
from mmsrec_jax.models.batch import Batch, no_images, pack_images


@dataclasses.dataclass(frozen=True)
class Room:
    """Static sizes of a batch.

    Attributes:
      rows: B.
      length: L, tokens of a row.
      targets: T, tokens of a row that have loss.
      patches: P, vision patches of a row; 0 = a batch without images.
      patch_width: D, values of a patch.
      answers: C, yes/no labels of a row; 0 = none.
      suffixes: examples have suffixes; those with labels always do.
      packed: a row may hold several examples; otherwise the batch says which one it holds.
    """

    rows: int
    length: int
    targets: int
    patches: int = 0
    patch_width: int = 0
    answers: int = 0
    suffixes: bool = False
    packed: bool = True

    @property
    def of_a_row(self) -> dict[str, int]:
        """What the examples of a row share, by the name of the setting."""
        return {name: getattr(self, name) for name in ("length", "patches", "answers", "targets")}

    def empty(self) -> Batch:
        """A batch that holds no example, in numpy."""
        rows, length = self.rows, self.length
        suffixes = self.answers or self.suffixes
        return Batch(
            tokens=np.zeros((rows, length), np.int32),
            positions=np.zeros((rows, 3, length), np.int32),
            segment_ids=np.zeros((rows, length), np.int32),
            suffix_ids=np.zeros((rows, length), np.int32) if suffixes else None,
            images=no_images(rows, self.patches, self.patch_width) if self.patches else None,
            loss_weights=np.zeros((rows, length), np.float32),
            target_positions=np.full((rows, self.targets), -1, np.int32),
            answer_positions=np.full((rows, self.answers), -1, np.int32) if self.answers else None,
            labels=np.zeros((rows, self.answers), np.int32) if self.answers else None,
            index=None if self.packed else np.full(rows, -1, np.int32),
        )


def needs(example: Example) -> dict[str, int]:
    """What an example takes of `Room.of_a_row`."""
    return {
        "length": len(example),
        "patches": example.num_patches,
        "answers": len(example.answer_positions),
        "targets": example.num_targets,
    }


def collate(rows: Sequence[Sequence[Example]], room: Room) -> Batch:
    """Examples side by side in the rows of a batch, as segments 1, 2, ...

    rows: `room.rows` of them, whose examples fit; an empty one is all padding.
    """
    batch = room.empty()
    assert batch.loss_weights is not None and batch.target_positions is not None
    for b, row in enumerate(rows):
        start = answer = 0
        for segment, example in enumerate(row, 1):
            span = slice(start, start + len(example))
            batch.tokens[b, span] = example.tokens
            batch.positions[b, :, span] = example.positions
            batch.segment_ids[b, span] = segment
            batch.loss_weights[b, span] = example.loss_weights
            if batch.suffix_ids is not None:
                batch.suffix_ids[b, span] = example.suffix_ids
            if n := len(example.answer_positions):
                assert batch.answer_positions is not None and batch.labels is not None
                at = example.answer_positions
                batch.answer_positions[b, answer : answer + n] = np.where(at >= 0, at + start, -1)
                batch.labels[b, answer : answer + n] = example.labels
                answer += n
            if batch.index is not None:
                batch.index[b] = example.index
            start = span.stop
        weighted = np.flatnonzero(batch.loss_weights[b])
        batch.target_positions[b, : len(weighted)] = weighted
    if not room.patches:
        return batch
    images = [[image for example in row for image in example.images] for row in rows]
    return dataclasses.replace(batch, images=pack_images(images, room.patches, room.patch_width))
