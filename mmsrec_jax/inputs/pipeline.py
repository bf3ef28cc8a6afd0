"""Examples to static-shape batches with Grain: shuffled, packed, resumable to the example."""

import abc
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Protocol

import grain
import numpy as np

from mmsrec_jax.inputs.batch import Room, collate, needs
from mmsrec_jax.inputs.example import Example, filler
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.runtime.errors import UserError

MAX_SKIPPED_IN_A_ROW = 100
_TOGETHER = 8  # examples to be packed that go from a worker to this process at once

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

    Without packing, workers make whole batches. With it they make examples, several at a time, and
    this process packs them: where an example stands depends on all before it.

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
      workers: processes that make examples, 0 = threads of this one. The batches are the same, and
        a state fits any number of them.
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
    rows = grain.MapDataset.range(total)
    if shuffle:
        rows = rows.shuffle(seed=seed)
    if repeat:
        rows = rows.repeat()
    draws = rows.map_with_index(_draw)[shard::shards]
    make: _Make = (
        _Make(source, draws, _TOGETHER) if pack else _MakeBatch(source, draws, room, prefix)
    )
    counts = Counter() if counts is None else counts

    def iterate() -> _Iterator:
        if pack:
            return _Packing(make, workers, counts, room, prefix)
        return _Rows(make, workers, counts)

    return grain.experimental.ThreadPrefetchIterDataset(_Batches(iterate), prefetch_buffer_size=2)


def ahead(dataset: grain.MapDataset, workers: int, waiting: int) -> grain.IterDataset:
    """The elements in order, made ahead of their use by `workers` processes or, if that is 0, by
    threads of this one. Elements go through pipes, batches too: small ones cost more for their
    size, and shared memory, of which a container may have little, is not needed.

    waiting: so many wait in each process and as many that were taken from it, beside the one being
      made and the one being taken.
    """
    if not workers:
        return dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2))
    # Threads of a worker would only take turns.
    made = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=waiting)
    return made.mp_prefetch(options, worker_init_fn=end_with_the_run)


def end_with_the_run(worker: int, workers: int) -> None:
    """Of a run that was killed, workers would wait forever for someone to take their examples. And
    SIGTERM to the whole process group must not end them before the run has saved, for which it
    needs batches."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def wait() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _draw(draw: int, row: int) -> tuple[int, int]:
    return int(draw), int(row)


class _Make:
    """Examples of `count` draws, from the one at `start` on."""

    waiting = 2

    def __init__(self, source: Source, draws: grain.MapDataset, count: int):
        self.source, self.draws, self.count = source, draws, count

    def __call__(self, start: int) -> Any:
        return self.examples(int(start))

    def examples(self, start: int) -> list[Example]:
        end = min(start + self.count, len(self.draws))
        return [self._example(*self.draws[at]) for at in range(start, end)]

    def _example(self, draw: int, row: int) -> Example:
        return self.source.example(row, draw) if row < len(self.source) else filler()


class _MakeBatch(_Make):
    """A batch with an example a row, and what these count."""

    waiting = 1  # with pictures it takes hundreds of MB

    def __init__(self, source: Source, draws: grain.MapDataset, room: Room, prefix: str):
        super().__init__(source, draws, room.rows)
        self._room, self._prefix = room, prefix

    def __call__(self, start: int) -> tuple[Batch, Counter]:
        examples, counts = self.examples(int(start)), Counter[str]()
        for example in examples:
            if problem := _too_large(example, self._room, self._prefix):
                raise UserError(problem)
            _count(example, counts)
        return collate([[example] for example in examples], self._room), counts


class _Batches(grain.IterDataset):
    def __init__(self, iterate: Callable[[], "_Iterator"]):
        super().__init__()
        self._iterate = iterate

    def __iter__(self) -> "_Iterator":
        return self._iterate()


class _Iterator(grain.DatasetIterator, abc.ABC):
    """The state is the draw that comes next, and not where each worker is."""

    def __init__(self, make: _Make, workers: int, counts: Counter):
        super().__init__()
        self._make, self._workers, self._counts = make, workers, counts
        self._made: grain.DatasetIterator | None = None
        self._draw = 0

    def get_state(self) -> dict[str, int]:
        return {"draw": self._draw}

    def set_state(self, state: dict[str, int]) -> None:
        if "draw" not in state:
            raise UserError(
                "the position in the data is of an earlier version; remove the checkpoints of this "
                "step, which then begins again"
            )
        self._stop()
        self._draw = int(state["draw"])

    def close(self) -> None:
        super().close()
        self._stop()

    def _stop(self) -> None:
        if self._made is not None:
            self._made.close()
        self._made = None

    def _next_made(self) -> Any:
        # In a thread that starts the workers, and these inherit the mask: before they ignore it
        # themselves, a SIGTERM to the whole group must not end them.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        if self._made is None:
            starts = grain.MapDataset.range(self._draw, len(self._make.draws), self._make.count)
            self._made = iter(ahead(starts.map(self._make), self._workers, self._make.waiting))
        return next(self._made)


class _Rows(_Iterator):
    """Batches as they are made."""

    def __next__(self) -> Batch:
        batch, counts = self._next_made()
        self._draw += self._make.count
        with _COUNTING:
            self._counts.update(counts)
        return batch


class _Packing(_Iterator):
    """Fills batches. The example that closed a batch is made again after a restore."""

    def __init__(self, make: _Make, workers: int, counts: Counter, room: Room, prefix: str):
        super().__init__(make, workers, counts)
        self._room, self._prefix = room, prefix
        self._sizes = np.array(list(room.of_a_row.values()))
        self._waiting: deque[Example] = deque()
        self._skipped = 0

    def _stop(self) -> None:
        super()._stop()
        self._waiting.clear()

    def __next__(self) -> Batch:
        rows: list[list[Example]] = [[] for _ in range(self._room.rows)]
        used = np.zeros((self._room.rows, len(self._sizes)), np.int64)
        while (example := self._first()) is not None:
            if problem := _too_large(example, self._room, self._prefix):
                self._skip(problem)
                continue
            needed = needs(example)
            taken = np.array([needed[name] for name in self._room.of_a_row])
            fits = (used + taken <= self._sizes).all(axis=1)
            if not fits.any():
                break
            row = int(np.argmax(fits))
            rows[row].append(example)
            used[row] += taken
            self._take()
            self._skipped = 0
            with _COUNTING:
                _count(example, self._counts)
        if not any(rows):
            raise StopIteration
        return collate(rows, self._room)

    def _first(self) -> Example | None:
        """Of the examples that are left; None at the end."""
        if not self._waiting:
            try:
                self._waiting.extend(self._next_made())
            except StopIteration:
                return None
        return self._waiting[0]

    def _take(self) -> None:
        self._waiting.popleft()
        self._draw += 1

    def _skip(self, problem: str) -> None:
        self._take()
        with _COUNTING:
            self._counts["skipped"] += 1
        self._skipped += 1
        if self._skipped == MAX_SKIPPED_IN_A_ROW:
            raise UserError(f"{self._skipped} examples one after the other fit no row: {problem}")


def _too_large(example: Example, room: Room, prefix: str) -> str:
    """What the example needs more of than a row has; an empty string if it fits."""
    needed = needs(example)
    for name, size in room.of_a_row.items():
        if needed[name] > size:
            return (
                f"{prefix}{name}: the example of row {example.index} needs {needed[name]}, a row "
                f"has {size}; raise it"
            )
    return ""


def _count(example: Example, counts: Counter) -> None:
    counts["examples"] += len(example) > 0
    counts.update({name: n for name, n in example.counts.items() if n})
