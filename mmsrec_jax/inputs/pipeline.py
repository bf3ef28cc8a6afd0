"""Examples to static-shape batches with Grain: shuffled, packed, resumable to the example."""

import abc
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np

from mmsrec_jax.inputs import packing
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
    look_ahead: int = 0,
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
      pack: several examples share a row. Otherwise one example a row, in order, and the last batch
        is made full with empty rows, as many in every shard.
      look_ahead: with packing, how many examples wait behind the next one. A row begins with the
        oldest and takes those that fill it most (`packing.fullest`), so that an example waits for
        at most so many rows. 0: first fit over the rows of a batch, in order; the batch is done
        when the next example fits nowhere.
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
            return _Packing(make, workers, counts, room, prefix, look_ahead)
        return _Rows(make, workers, counts)

    return grain.experimental.ThreadPrefetchIterDataset(_Batches(iterate), prefetch_buffer_size=2)


def ahead(dataset: grain.MapDataset, workers: int, waiting: int) -> grain.IterDataset:
    """The elements in order, made ahead of their use by `workers` processes or, if that is 0, by
    threads of this one. Elements go through pipes, batches too: small ones cost more for their
    size, and shared memory, of which a container may have little, is not needed. Elements are no
    `Counter`s: where jax is missing Grain makes nonsense of mappings other than plain dicts.

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


class _Spans(Sequence[range]):
    """Draws that are made together: each of `late` by itself, then `count` at a time from `start`
    to `end`."""

    def __init__(self, late: Sequence[int], start: int, end: int, count: int):
        self._late, self._rest = list(late), range(start, end, count)
        self._end, self._count = end, count

    def __len__(self) -> int:
        return len(self._late) + len(self._rest)

    def __getitem__(self, at: Any) -> Any:
        at = int(at)
        if at < len(self._late):
            return range(self._late[at], self._late[at] + 1)
        start = self._rest[at - len(self._late)]
        return range(start, min(start + self._count, self._end))


class _Make:
    """Examples of draws, `count` at a time."""

    waiting = 2

    def __init__(self, source: Source, draws: grain.MapDataset, count: int):
        self.source, self.draws, self.count = source, draws, count

    def __call__(self, span: range) -> Any:
        return self.examples(span)

    def examples(self, span: range) -> list[Example]:
        return [self._example(*self.draws[at]) for at in span]

    def _example(self, draw: int, row: int) -> Example:
        return self.source.example(row, draw) if row < len(self.source) else filler()


class _MakeBatch(_Make):
    """A batch with an example a row, and what these count."""

    waiting = 1  # with pictures it takes hundreds of MB

    def __init__(self, source: Source, draws: grain.MapDataset, room: Room, prefix: str):
        super().__init__(source, draws, room.rows)
        self._room, self._prefix = room, prefix

    def __call__(self, span: range) -> tuple[Batch, dict[str, int]]:
        examples, counts = self.examples(span), Counter[str]()
        for example in examples:
            if problem := _too_large(example, self._room, self._prefix):
                raise UserError(problem)
            _count(example, counts)
        return collate([[example] for example in examples], self._room), dict(counts)


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

    def get_state(self) -> dict[str, Any]:
        return {"draw": self._draw}

    def set_state(self, state: dict[str, Any]) -> None:
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

    def _next_made(self, late: Sequence[int] = ()) -> Any:
        """late: draws that come before the next one when nothing has been made yet."""
        # In a thread that starts the workers, and these inherit the mask: before they ignore it
        # themselves, a SIGTERM to the whole group must not end them.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        if self._made is None:
            make = self._make
            spans = _Spans(late, self._draw, len(make.draws), make.count)
            made = grain.MapDataset.source(spans).map(make)
            self._made = iter(ahead(made, self._workers, make.waiting))
        return next(self._made)


class _Rows(_Iterator):
    """Batches as they are made."""

    def __next__(self) -> Batch:
        batch, counts = self._next_made()
        self._draw += self._make.count
        with _COUNTING:
            self._counts.update(counts)
        return batch


class _Waiting(NamedTuple):
    """An example and its draw; needed: int[sizes], what it takes of `Room.of_a_row`."""

    draw: int
    example: Example
    needed: np.ndarray


class _Packing(_Iterator):
    """Fills batches. The state also has the draws before the next one that still wait, which are
    made again after a restore."""

    def __init__(
        self, make: _Make, workers: int, counts: Counter, room: Room, prefix: str, look_ahead: int
    ):
        super().__init__(make, workers, counts)
        self._room, self._prefix, self._look_ahead = room, prefix, look_ahead
        self._sizes = np.array(list(room.of_a_row.values()))
        self._waiting: list[_Waiting] = []
        self._late: deque[int] = deque()  # waited when the state was stored, not made again so far
        self._ready: deque[Example] = deque()
        self._ended = False
        self._skipped = 0

    def get_state(self) -> dict[str, Any]:
        draw, waiting = self._draw, [one.draw for one in self._waiting] + [*self._late]
        while waiting and waiting[-1] == draw - 1:
            draw = waiting.pop()
        return {"draw": draw} | ({"waiting": waiting} if waiting else {})

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._late.extend(map(int, state.get("waiting", ())))

    def _stop(self) -> None:
        super()._stop()
        self._waiting.clear()
        self._late.clear()
        self._ready.clear()
        self._ended, self._skipped = False, 0

    def __next__(self) -> Batch:
        rows: list[list[Example]] = [[] for _ in range(self._room.rows)]
        if self._look_ahead:
            self._fill(rows)
        else:
            self._fill_in_order(rows)
        if not any(rows):
            raise StopIteration
        return collate(rows, self._room)

    def _fill(self, rows: list[list[Example]]) -> None:
        for row in rows:
            left = self._sizes
            while self._refill():
                # The oldest begins a row: none waits for ever.
                needed = np.stack([one.needed for one in self._waiting])
                at = packing.fullest(needed, left) if row else 0
                if at is None:
                    break
                left = left - needed[at]
                row.append(self._take(at))

    def _fill_in_order(self, rows: list[list[Example]]) -> None:
        used = np.zeros((len(rows), len(self._sizes)), np.int64)
        while self._refill():
            needed = self._waiting[0].needed
            at = packing.first_row(used, needed, self._sizes)
            if at is None:
                break
            used[at] += needed
            rows[at].append(self._take(0))

    def _take(self, at: int) -> Example:
        example = self._waiting.pop(at).example
        with _COUNTING:
            _count(example, self._counts)
        return example

    def _refill(self) -> bool:
        """Whether any example is left, of which as many as may wait are there."""
        while len(self._waiting) <= self._look_ahead:
            if self._ended:
                break
            if not self._ready:
                try:
                    self._ready.extend(self._next_made(self._late))
                except StopIteration:
                    self._ended = True
                    break
            self._arrive(self._ready.popleft())
        return bool(self._waiting)

    def _arrive(self, example: Example) -> None:
        if self._late:
            draw = self._late.popleft()
        else:
            draw, self._draw = self._draw, self._draw + 1
        if problem := _too_large(example, self._room, self._prefix):
            self._skip(problem)
            return
        self._skipped = 0
        needed = needs(example)
        taken = np.array([needed[name] for name in self._room.of_a_row])
        self._waiting.append(_Waiting(draw, example, taken))

    def _skip(self, problem: str) -> None:
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
