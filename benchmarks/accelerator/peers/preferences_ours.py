"""Texts of windows by this package: of all users at once, window by window of their chains.

By the program of `methods.user_texts.write_windows`, without its files, the hashes of its prompts
and Grain, which may be missing here: a batch of prompts is made while the device writes the batch
before it.
"""

import functools
import statistics
import time
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks import windows
from benchmarks.accelerator.peers import ours, side
from benchmarks.accelerator.peers.preferences_work import KEPT, OURS, Work, work
from benchmarks.accelerator.record import Ask, attempt
from mmsrec_jax.inference import sampler
from mmsrec_jax.inference.sampler import Generation, Sampling
from mmsrec_jax.inputs import batch as batches
from mmsrec_jax.inputs.example import Example, filler
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.runtime.arrays import to_devices

_TIMES = 2


class Texts:
    """Written by a compiled program (batch, rows) -> Generation, one text a row."""

    def __init__(self, work: Work, write: Any, mesh: Any):
        self.work, self._write, self._mesh = work, write, mesh

    def __call__(self) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
        """(user, window) -> its tokens int32[T] and their log-probabilities float32[T]."""
        tastes, rows = self.work.tastes, self.work.rows
        found = {}
        for at in range(tastes.windows.chain):
            found |= self.of(rows[tastes.windows.round(rows[:, 1]) == at])
        return found

    def of(self, rows: np.ndarray) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
        """Of windows int32[n, 2] of one round."""
        tastes, size = self.work.tastes, self.work.batch_size
        source = windows.prompts(tastes, rows, tastes.preference)
        found, running = {}, None
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            examples = [source.example(start + i, 0) for i in range(len(part))]
            started = part, self._start(examples)
            if running is not None:
                found |= _fetched(*running)
            running = started
        return found if running is None else found | _fetched(*running)

    def _start(self, examples: list[Example]) -> Generation:
        batch = to_devices(prompt_batch(self.work, examples), self._mesh)
        index = np.arange(self.work.batch_size, dtype=np.int32)
        return self._write(batch, to_devices(index, self._mesh))


def measure_ours(ask: Ask) -> None:
    """What is written of their users is kept for `preferences_theirs`."""
    if OURS in ask.done:
        return
    todo, mesh, programs = work(ask.tiny), ours.mesh(), ours.Programs()
    programs.start(OURS, functools.partial(_lower, ask.tiny, todo, mesh))
    model, seconds = ours.load(ask.tiny)
    attempt(ask, "ours, reading weights", functools.partial(dict, load_seconds=seconds))
    programs.wait()
    attempt(ask, OURS, lambda: _row(ask, todo, programs, nnx.split(model)[1], mesh))


def _lower(tiny: bool, todo: Work, mesh: Any) -> Any:
    """The program; weights need not be there."""
    sampling = Sampling(
        num_generations=1, max_new_tokens=todo.new_tokens, eos_ids=(), pad_id=0,
        gather_weights=True, temperature=0.0, suppress=todo.suppress,
    )  # fmt: skip
    graphdef, state = ours.abstract(tiny, mesh)
    with jax.set_mesh(mesh):
        blank = to_devices(prompt_batch(todo, []), mesh)
        index = to_devices(np.zeros(todo.batch_size, np.int32), mesh)
        return sampler.generate_compiled.lower(
            graphdef, sampling, state, blank, index, jax.random.key(0)
        )


def _row(ask: Ask, todo: Work, programs: ours.Programs, state: Any, mesh: Any) -> dict[str, Any]:
    compiled, compile_seconds = programs.take(OURS)
    key = jax.random.key(0)
    texts = Texts(todo, lambda batch, rows: compiled(state, batch, rows, key), mesh)
    texts.of(todo.rows[:1])  # the first call is a slow one
    seconds = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        written = texts()
        seconds.append(time.perf_counter() - began)
    tokens, logprobs = zip(*(written[u, k] for u, k in todo.peer_rows.tolist()), strict=True)
    side.keep(ask, KEPT, tokens=np.stack(tokens), logprobs=np.stack(logprobs))
    taken = statistics.median(seconds)
    return {
        "seconds": taken,
        **windows.speeds(todo.tastes, len(written), taken),
        "windows": len(written),
        "memory_gib": ours.program_gib(compiled),
        "compile_seconds": compile_seconds,
    }


def prompt_batch(todo: Work, examples: list[Example]) -> Batch:
    """A prompt a row, and empty rows up to the size of a batch."""
    room = batches.Room(
        rows=todo.batch_size, length=todo.tastes.settings.prompt_length, targets=0, packed=False
    )
    empty = [filler()] * (todo.batch_size - len(examples))
    return batches.collate([[each] for each in (*examples, *empty)], room).model_inputs()


def _fetched(
    rows: np.ndarray, written: Generation
) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
    tokens, logprobs = (np.asarray(x)[:, 0] for x in (written.tokens, written.logprobs))
    return {(u, k): (tokens[i], logprobs[i]) for i, (u, k) in enumerate(rows.tolist())}
