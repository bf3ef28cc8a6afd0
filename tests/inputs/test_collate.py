"""The collator against rows laid out by hand."""

import numpy as np

from mmsrec_jax.inputs.batch import Room, collate
from mmsrec_jax.inputs.example import Example, filler
from mmsrec_jax.models.batch import fields_of

WIDTH = 3


def image(value: int, count: int, windows: int) -> dict:
    return {
        "patches": np.full((count, WIDTH), value, np.uint8),
        "hw": np.stack([np.arange(count), np.zeros(count)], 1).astype(np.int32),
        "window_ids": np.arange(count, dtype=np.int32) % windows + 1,
    }


def example(tokens, *, index, answers=(), images=()) -> Example:
    n = len(tokens)
    weights = np.zeros(n, np.float32)
    weights[-1] = 2
    return Example(
        tokens=np.array(tokens, np.int32),
        loss_weights=weights,
        suffix_ids=np.arange(n, dtype=np.int32),
        positions=np.tile(np.arange(n, dtype=np.int32), (3, 1)),
        images=images,
        answer_positions=np.array(answers, np.int32),
        labels=np.ones(len(answers), np.int32),
        index=index,
    )


def test_a_row_of_two_examples_by_hand():
    one = example([5, 6, 7], index=1, answers=[1, -1], images=(image(9, 2, 2), image(8, 1, 1)))
    two = example([3, 4], index=2, answers=[0], images=(image(7, 2, 1),))
    room = Room(2, length=6, targets=3, patches=6, patch_width=WIDTH, answers=4)
    batch = collate([[one, two], []], room)
    first = {name: array[0].tolist() for name, array, _ in fields_of(batch)}
    pixels = first.pop("images.pixels")
    assert pixels == [[9] * 3, [9] * 3, [8] * 3, [7] * 3, [7] * 3, [0] * 3]
    assert first == {
        "tokens": [5, 6, 7, 3, 4, 0],
        "positions": [[0, 1, 2, 0, 1, 0]] * 3,
        "segment_ids": [1, 1, 1, 2, 2, 0],
        "suffix_ids": [0, 1, 2, 0, 1, 0],
        "images.hw": [[0, 0], [1, 0], [0, 0], [0, 0], [1, 0], [0, 0]],
        "images.image_ids": [1, 1, 2, 3, 3, 0],
        "images.window_ids": [1, 2, 3, 4, 4, 0],
        "loss_weights": [0, 0, 2, 0, 2, 0],
        "target_positions": [2, 4, -1],
        "answer_positions": [1, -1, 3, -1],
        "labels": [1, 1, 1, 0],
    }
    empty = {name: set(array[1].ravel().tolist()) for name, array, _ in fields_of(batch)}
    assert {name for name, values in empty.items() if values == {-1}} == {
        "target_positions", "answer_positions",
    }  # fmt: skip
    assert all(values in ({0}, {-1}) for values in empty.values())


def test_fields_without_room_are_not_there():
    batch = collate([[example([1, 2], index=3)], [filler()]], Room(2, 4, 1, packed=False))
    absent = (batch.images, batch.suffix_ids, batch.answer_positions, batch.labels)
    assert absent == (None,) * 4
    assert batch.index.tolist() == [3, -1]
