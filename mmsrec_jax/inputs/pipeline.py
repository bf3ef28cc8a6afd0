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

from mmsrec_jax.inputs.batch import Room, collate, needs
from mmsrec_jax.inputs.example import Example, filler
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.runtime.errors import UserError

MAX_SKIPPED_IN_A_ROW = 100

_COUNTING = threading.Lock()  # shards of one process are made in threads


class Source(Protocol):
    """Examples by row; a row's example may differ from draw to draw. See `inputs.recommend`."""

    @property
    def patch_width(self) -> int:
        """Values of a vision patch, 0 where prompts have no images."""
        ...

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
    suffixes: bool = False,
    seed: int = 0,
    shuffle: bool = True,
    repeat: bool = True,
    pack: bool = True,
    workers: int = 0,
    shard: int = 0,
    shards: int = 1,
    counts: Counter | None = None,
    section: str = "",
) -> grain.IterDataset:
    """`Batch`es of numpy arrays; `iter()` of the result has exact `get_state` and `set_state`.

    Args:
      source: examples by row.
      batch_size: rows of all shards together; B is its share.
      length, patches, answers, targets: a row's room for tokens, vision patches (0 = no images),
        yes/no labels (0 = none) and tokens with loss (None = half of `length`).
      suffixes: examples have suffixes although they have no labels.
      seed: of the order of rows, another for each epoch.
      repeat: endless; otherwise one epoch.
      pack: several examples share a row, first fit over the rows of a batch, which is done when
        the next example fits nowhere. Otherwise one example a row, in order, and the last batch is
        made full with empty rows, as many in every shard.
      workers: processes that make examples, 0 = threads of this one. The batches are the same.
      shard, shards: every `shards`-th example from `shard` on, and as many of the rows.
      counts: is added to as batches are made (which is up to two ahead of their use): "examples",
        "skipped" and what sources count.
      section: of the settings that these sizes are from, such as "config.sft", for errors.

    Yields:
      Batches with all fields of `Batch` but: images where `patches` is 0; answer_positions and
      labels where `answers` is 0, and suffix_ids unless `suffixes`; index with packing.

    Raises:
      UserError: sizes that do not divide; while iterating, an example that fits no empty row and
        may not be skipped (without packing), or too many of them one after the other.
    """
    prefix = f"{section}." if section else ""
    if batch_size % shards:
        raise UserError(
            f"{prefix}batch_size={batch_size} does not divide into {shards} input shards; make it "
            "a multiple"
        )
    if pack and not repeat and shards > 1:
        raise UserError("packed batches of one epoch differ in number between shards")
    patch_width = source.patch_width
    if bool(patches) != bool(patch_width):
        raise UserError(
            f"{prefix}patches={patches}, but the prompts have {'' if patch_width else 'no '}images"
        )
    room = Room(
        rows=batch_size // shards,
        length=length,
        targets=targets or max(1, length // 2),
        patches=patches,
        patch_width=patch_width,
        answers=answers,
        suffixes=suffixes,
        packed=pack,
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
        dataset = dataset.mp_prefetch(options, worker_init_fn=end_with_the_run)
    batched = _Batches(dataset, room, Counter() if counts is None else counts, prefix)
    return grain.experimental.ThreadPrefetchIterDataset(batched, prefetch_buffer_size=2)


def end_with_the_run(worker: int, workers: int) -> None:
    """Of a run that was killed, workers would wait forever for someone to take their examples."""

    def wait() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class _Make:
    def __init__(self, source: Source):
        self._source = source

    def __call__(self, draw: int, row: int) -> Example:
        row = int(row)
        return self._source.example(row, int(draw)) if row < len(self._source) else filler()


class _Batches(grain.IterDataset):
    def __init__(self, parent: grain.IterDataset, room: Room, counts: Counter, prefix: str):
        super().__init__(parent)
        self._room, self._counts, self._prefix = room, counts, prefix

    def __iter__(self) -> "_BatchIterator":
        return _BatchIterator(self._parent.__iter__(), self._room, self._counts, self._prefix)


class _BatchIterator(grain.DatasetIterator):
    """Fills batches. The example that closed a batch is read again after a restore, so the state is
    that of the parent before it."""

    def __init__(self, parent: grain.DatasetIterator, room: Room, counts: Counter, prefix: str):
        super().__init__(parent)
        self._room, self._counts, self._prefix = room, counts, prefix
        self._names, self._sizes = zip(*room.of_a_row.items(), strict=True)
        self._left_over: Example | None = None
        self._state = copy.deepcopy(parent.get_state())
        self._skipped = 0

    def get_state(self) -> Any:
        return {"parent": self._state}

    def set_state(self, state: Any) -> None:
        self._state = copy.deepcopy(state["parent"])
        self._parent.set_state(state["parent"])
        self._left_over = None

    def __next__(self) -> Batch:
        # In a thread that starts the workers, and these inherit the mask: SIGTERM to the whole
        # process group must not end them before the run has saved, for which it needs batches.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        rows: list[list[Example]] = [[] for _ in range(self._room.rows)]
        used = np.zeros((self._room.rows, len(self._sizes)), np.int64)
        while True:
            if self._left_over is None:
                self._state = copy.deepcopy(self._parent.get_state())
                try:
                    self._left_over = next(self._parent)
                except StopIteration:
                    break
            example = self._left_over
            needed = needs(example)
            taken = np.array([needed[name] for name in self._names])
            if (taken > self._sizes).any():
                self._skip(example, taken)
                self._left_over = None
                continue
            fits = (used + taken <= self._sizes).all(axis=1)
            if not self._room.packed:
                fits &= np.array([not row for row in rows])
            if not fits.any():
                break
            row = int(np.argmax(fits))
            rows[row].append(example)
            used[row] += taken
            self._left_over = None
            self._skipped = 0
            with _COUNTING:
                self._counts["examples"] += len(example) > 0
                self._counts.update({name: n for name, n in example.counts.items() if n})
        if not any(rows):
            raise StopIteration
        return collate(rows, self._room)

    def _skip(self, example: Example, taken: np.ndarray) -> None:
        which = int(np.argmax(taken > self._sizes))
        problem = (
            f"{self._prefix}{self._names[which]}: the example of row {example.index} needs "
            f"{taken[which]}, a row has {self._sizes[which]}; raise it"
        )
        with _COUNTING:
            self._counts["skipped"] += 1
        self._skipped += 1
        if not self._room.packed:
            raise UserError(problem)
        if self._skipped == MAX_SKIPPED_IN_A_ROW:
            raise UserError(f"{self._skipped} examples one after the other fit no row: {problem}")
