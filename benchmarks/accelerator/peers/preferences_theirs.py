"""Texts of windows in the published way: a loop over users and their windows with `generate`."""

import functools
import time
from collections import Counter
from typing import Any

import numpy as np
import torch

from benchmarks import windows
from benchmarks.accelerator.peers import agreement, side, theirs
from benchmarks.accelerator.peers.preferences_work import KEPT, THEIRS, Work, work
from benchmarks.accelerator.record import Ask, attempt


class Loop:
    """Of the first users; returns what is new, int64[n, T]."""

    def __init__(self, model: Any, work: Work):
        self.model, self.work = model, work

    def __call__(self) -> np.ndarray:
        return np.stack([self.text(row) for row in self.work.peer_rows])

    def text(self, row: np.ndarray) -> np.ndarray:
        """int64[T] of one window int32[2]."""
        tastes, work = self.work.tastes, self.work
        source = windows.prompts(tastes, row[None], tastes.preference)
        prompt = theirs.tensor(source.example(0, 0).tokens[None].astype(np.int64))
        new = theirs.generate(
            self.model, {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)},
            new_tokens=work.new_tokens, suppress=work.suppress, do_sample=False,
        )  # fmt: skip
        return new[0].cpu().numpy()


def measure_theirs(ask: Ask) -> None:
    """The loop, and what ours wrote of the same windows by their model."""
    if {THEIRS, agreement.CASE} <= ask.done:
        return
    todo = work(ask.tiny)
    model, seconds = theirs.load(ask.tiny)
    attempt(ask, "transformers, reading weights", functools.partial(dict, load_seconds=seconds))
    loop = Loop(model, todo)
    loop.text(todo.peer_rows[0])  # the first call is a slow one
    theirs.restart_peak()
    began = time.perf_counter()
    text = loop()
    taken = time.perf_counter() - began
    attempt(ask, THEIRS, lambda: _row(todo, len(text), taken))
    attempt(ask, agreement.CASE, lambda: _agreement(ask, loop, text))


def _row(todo: Work, written: int, seconds: float) -> dict[str, Any]:
    speeds = windows.speeds(todo.tastes, written, seconds)
    row = {"seconds": seconds, **speeds, "windows": written}
    if memory := theirs.peak_gib():
        row["memory_gib"] = memory
    return row


def _agreement(ask: Ask, loop: Loop, text: np.ndarray) -> dict[str, Any]:
    """Ours as theirs sees it: `theirs.greedy` and `theirs.apart`."""
    written = side.kept(ask, KEPT)
    if written is None:
        raise RuntimeError("ours wrote nothing to compare with")
    todo, tokens = loop.work, written["tokens"]
    source = windows.prompts(todo.tastes, todo.peer_rows, todo.tastes.preference)
    prompts = [source.prompt(row, Counter()) for row in range(len(source))]
    seen = theirs.logprobs(loop.model, prompts, todo.processor, tokens)
    return {
        **theirs.greedy(seen, tokens, text, todo.suppress),
        **theirs.apart(seen, tokens, written["logprobs"]),
    }
