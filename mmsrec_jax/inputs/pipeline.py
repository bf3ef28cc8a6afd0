"""Examples to static-shape batches with Grain: shuffled, packed, resumable to the example."""

import copy
import multiprocessing
import os
import signal
import threading
from collections import Counter
from typing import Any, Protocol

import grain
import numpy as np

from mmsrec_jax.inputs.example import Example, filler
from mmsrec_jax.inputs.items import ItemRenderer
from mmsrec_jax.runtime.errors import UserError

MAX_SKIPPED_IN_A_ROW = 100

_COUNTING = threading.Lock()  # shards of one process are made in threads


class Source(Protocol):
    """See `inputs.recommend`."""

    items: ItemRenderer

    def __len__(self) -> int: ...
    def example(self, row: int, draw: int) -> Example: ...


def batches(
    source: Source,
    *,
    batch_size: int,
    length: int,
    patches: int = 0,
    answers: int = 0,
    targets: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
    repeat: bool = True,
    pack: bool = True,
    workers: int = 0,
    shard: int = 0,
    shards: int = 1,
    counts: Counter | None = None,
) -> grain.IterDataset:
    """Batches of numpy arrays; `iter()` of the result has exact `get_state` and `set_state`.

    Args:
      source: examples by row.
      batch_size: rows of all shards together; B is its share.
      length, patches, answers, targets: a row's room for tokens, vision patches (0 = batches
        without image keys), yes/no labels (0 = without yes/no label keys) and tokens with loss
        (None = half of `length`).
      seed: of the order of rows, another for each epoch.
      repeat: endless; otherwise one epoch.
      pack: several examples share a row, first fit over the rows of a batch, which is done when
        the next example fits nowhere. Otherwise one example a row, in order, and the last batch is
        made full with empty rows, as many in every shard.
      workers: processes that make examples, 0 = threads of this one. The batches are the same.
      shard, shards: every `shards`-th example from `shard` on, and as many of the rows.
      counts: is added to as batches are made (which is up to two ahead of their use): "examples",
        "skipped" and what sources count.

    Yields:
      tokens, segment_ids int32[B, L], positions int32[B, 3, L], loss_weights float32[B, L],
      target_positions int32[B, targets] (where the weights are, -1); patches uint8[B, P, D],
      patch_hw int32[B, P, 2], patch_image_ids, patch_window_ids int32[B, P]; where there is room
      for yes_no_ids, which every branch ends in, suffix_ids int32[B, L] and answer_positions (-1 =
      none), labels int32[B, answers]: yes/no labels of the examples of a row one after the other,
      told apart by the segment at their positions; without packing also index int32[B], the
      example's row or item, -1 in empty rows.

    Raises:
      UserError: sizes that do not divide; while iterating, an example that fits no empty row and
        may not be skipped (without packing), or too many of them one after the other.
    """
    if batch_size % shards:
        raise UserError(
            f"batch_size {batch_size} does not divide into {shards} input shards; make it a "
            "multiple"
        )
    if pack and not repeat and shards > 1:
        raise UserError("packed batches of one epoch differ in number between shards")
    patch_width = source.items.patch_width
    if bool(patches) != bool(patch_width):
        raise UserError(
            f"patches={patches}, but the prompts have {'' if patch_width else 'no '}images"
        )
    shape = _Shape(
        rows=batch_size // shards,
        length=length,
        patches=patches,
        patch_width=patch_width,
        answers=answers,
        targets=targets or max(1, length // 2),
    )
    total = len(source)
    if not (pack or repeat):
        total = -(-total // batch_size) * batch_size
    dataset = grain.MapDataset.range(total)
    if shuffle:
        dataset = dataset.shuffle(seed=seed)
    if repeat:
        dataset = dataset.repeat()
    dataset = dataset.map_with_index(_Make(source))[shard::shards]
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_end_with_the_run)
    rows = _Rows(dataset, shape, pack, Counter() if counts is None else counts)
    return grain.experimental.ThreadPrefetchIterDataset(rows, prefetch_buffer_size=2)


def empty(
    rows: int,
    *,
    length: int,
    patches: int,
    patch_width: int,
    answers: int,
    targets: int,
    pack: bool,
) -> dict[str, np.ndarray]:
    """A batch of `batches` that holds no example; patch_width: values of a patch."""
    batch = {
        "tokens": np.zeros((rows, length), np.int32),
        "positions": np.zeros((rows, 3, length), np.int32),
        "segment_ids": np.zeros((rows, length), np.int32),
        "loss_weights": np.zeros((rows, length), np.float32),
        "target_positions": np.full((rows, targets), -1, np.int32),
    }
    if answers:
        batch["suffix_ids"] = np.zeros((rows, length), np.int32)
        batch["answer_positions"] = np.full((rows, answers), -1, np.int32)
        batch["labels"] = np.zeros((rows, answers), np.int32)
    if not pack:
        batch["index"] = np.full(rows, -1, np.int32)
    if patches:
        batch["patches"] = np.zeros((rows, patches, patch_width), np.uint8)
        batch["patch_hw"] = np.zeros((rows, patches, 2), np.int32)
        batch["patch_image_ids"] = np.zeros((rows, patches), np.int32)
        batch["patch_window_ids"] = np.zeros((rows, patches), np.int32)
    return batch


def _end_with_the_run(worker: int, workers: int) -> None:
    """Of a run that was killed, workers would wait forever for someone to take their examples."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class _Make:
    def __init__(self, source: Source):
        self._source = source

    def __call__(self, draw: int, row: int) -> Example:
        row = int(row)
        return self._source.example(row, int(draw)) if row < len(self._source) else filler()


class _Shape:
    """Static sizes of a batch on one process."""

    def __init__(self, *, rows, length, patches, patch_width, answers, targets):
        self.rows, self.patch_width = rows, patch_width
        self.room = np.array([length, patches, answers, targets])
        self.names = ("length", "patches", "answers", "targets")

    def needs(self, example: Example) -> np.ndarray:
        return np.array(
            [
                len(example),
                example.num_patches,
                len(example.answer_positions),
                example.num_targets,
            ]
        )


class _Rows(grain.IterDataset):
    def __init__(self, parent: grain.IterDataset, shape: _Shape, pack: bool, counts: Counter):
        super().__init__(parent)
        self._shape, self._pack, self._counts = shape, pack, counts

    def __iter__(self) -> "_RowsIterator":
        return _RowsIterator(self._parent.__iter__(), self._shape, self._pack, self._counts)


class _RowsIterator(grain.DatasetIterator):
    """Fills batches. The example that closed a batch is read again after a restore, so the state is
    that of the parent before it."""

    def __init__(self, parent: grain.DatasetIterator, shape: _Shape, pack: bool, counts: Counter):
        super().__init__(parent)
        self._shape, self._pack, self._counts = shape, pack, counts
        self._left_over: Example | None = None
        self._state = copy.deepcopy(parent.get_state())
        self._skipped = 0

    def get_state(self) -> Any:
        return {"parent": self._state}

    def set_state(self, state: Any) -> None:
        self._state = copy.deepcopy(state["parent"])
        self._parent.set_state(state["parent"])
        self._left_over = None

    def __next__(self) -> dict[str, np.ndarray]:
        # In a thread that starts the workers, and these inherit the mask: SIGTERM to the whole
        # process group must not end them before the run has saved, for which it needs batches.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        rows: list[list[Example]] = [[] for _ in range(self._shape.rows)]
        used = np.zeros((self._shape.rows, 4), np.int64)
        while True:
            if self._left_over is None:
                self._state = copy.deepcopy(self._parent.get_state())
                try:
                    self._left_over = next(self._parent)
                except StopIteration:
                    break
            example = self._left_over
            needs = self._shape.needs(example)
            if (needs > self._shape.room).any():
                self._skip(example, needs)
                self._left_over = None
                continue
            fits = (used + needs <= self._shape.room).all(axis=1)
            if not self._pack:
                fits &= np.array([not row for row in rows])
            if not fits.any():
                break
            row = int(np.argmax(fits))
            rows[row].append(example)
            used[row] += needs
            self._left_over = None
            self._skipped = 0
            with _COUNTING:
                self._counts["examples"] += len(example) > 0
                self._counts.update({name: n for name, n in example.counts.items() if n})
        if not any(rows):
            raise StopIteration
        return self._collate(rows)

    def _skip(self, example: Example, needs: np.ndarray) -> None:
        which = int(np.argmax(needs > self._shape.room))
        problem = (
            f"the example of row {example.index} needs {self._shape.names[which]} {needs[which]}, "
            f"a row has {self._shape.room[which]}; raise it"
        )
        with _COUNTING:
            self._counts["skipped"] += 1
        self._skipped += 1
        if not self._pack:
            raise UserError(problem)
        if self._skipped == MAX_SKIPPED_IN_A_ROW:
            raise UserError(f"{self._skipped} examples one after the other fit no row: {problem}")

    def _collate(self, rows: list[list[Example]]) -> dict[str, np.ndarray]:
        length, patches, answers, targets = (int(n) for n in self._shape.room)
        batch = empty(
            len(rows),
            length=length,
            patches=patches,
            patch_width=self._shape.patch_width,
            answers=answers,
            targets=targets,
            pack=self._pack,
        )
        for b, row in enumerate(rows):
            start = answer = 0
            for segment, example in enumerate(row, 1):
                span = slice(start, start + len(example))
                batch["tokens"][b, span] = example.tokens
                batch["positions"][b, :, span] = example.positions
                batch["segment_ids"][b, span] = segment
                batch["loss_weights"][b, span] = example.loss_weights
                if n := len(example.answer_positions):
                    batch["suffix_ids"][b, span] = example.suffix_ids
                    at = example.answer_positions
                    batch["answer_positions"][b, answer : answer + n] = np.where(
                        at >= 0, at + start, -1
                    )
                    batch["labels"][b, answer : answer + n] = example.labels
                    answer += n
                if not self._pack:
                    batch["index"][b] = example.index
                start += len(example)
            weighted = np.flatnonzero(batch["loss_weights"][b])
            batch["target_positions"][b, : len(weighted)] = weighted
        if patches:
            _collate_images(rows, batch)
        return batch


def _collate_images(rows: list[list[Example]], batch: dict[str, np.ndarray]) -> None:
    images = [[image for example in row for image in example.images] for row in rows]
    for b, row in enumerate(images):
        start = windows = 0
        for number, image in enumerate(row, 1):
            span = slice(start, start + len(image["patches"]))
            batch["patches"][b, span] = image["patches"]
            batch["patch_hw"][b, span] = image["hw"]
            batch["patch_image_ids"][b, span] = number
            batch["patch_window_ids"][b, span] = image["window_ids"] + windows
            windows += int(image["window_ids"].max())
            start = span.stop
