"""Rollouts of transformers: `generate` with several sequences a prompt."""

import functools
from typing import Any

import torch

from benchmarks.accelerator import timing
from benchmarks.accelerator.peers import agreement, pieces, side, theirs
from benchmarks.accelerator.peers.prompts import KEPT, Prompts, prompts
from benchmarks.accelerator.record import Ask, OutOfTime, attempt

SAMPLED = "transformers, sampled"
_DYNAMIC, _STATIC = f"{SAMPLED}, dynamic cache", f"{SAMPLED}, static cache"
_COMPILED = f"{_STATIC}, compiled"
_COMPILE_SECONDS = 60.0


class Generate:
    """`generate` on all prompts, padded on the left; returns what is new, int64[B * G, T]."""

    def __init__(self, model: Any, work: Prompts, dtype: torch.dtype):
        rows = pieces.padded(work.pieces, work.processor, left=True)
        ids = theirs.tensor(rows.tokens)
        self.model, self.work = model, work
        self.inputs = {
            "input_ids": ids,
            "attention_mask": theirs.tensor(rows.mask),
            "mm_token_type_ids": (ids == model.config.image_token_id).int(),
            **theirs.images(rows, dtype),
        }

    def __call__(self, **options: Any) -> torch.Tensor:
        work = self.work
        return theirs.generate(
            self.model, self.inputs, new_tokens=work.new_tokens, suppress=work.suppress,
            top_k=0, top_p=1.0, **options,
        )  # fmt: skip


def measure_theirs(ask: Ask) -> None:
    """Sampled with a growing cache; what ours wrote, by their model; sampled with a static cache,
    with which `generate` compiles its step on a GPU."""
    static = _STATIC if theirs.DEVICE.type == "cpu" else _COMPILED
    if {_DYNAMIC, agreement.CASE, static} <= ask.done:
        return
    work = prompts(ask.tiny)
    model, seconds = theirs.load(ask.tiny)
    attempt(ask, "transformers, reading weights", functools.partial(dict, load_seconds=seconds))
    generate = Generate(model, work, model.dtype)
    row = functools.partial(_row, generate)
    attempt(ask, _DYNAMIC, row)
    attempt(ask, agreement.CASE, functools.partial(_agreement, ask, model, generate))
    if static == _COMPILED and not ask.tiny and ask.seconds_left() < _COMPILE_SECONDS:
        raise OutOfTime("before compiling transformers' step")
    attempt(ask, static, functools.partial(row, cache_implementation="static"))


def _row(generate: Generate, **options: Any) -> dict[str, Any]:
    work = generate.work
    theirs.restart_peak()

    def call() -> None:
        new = generate(do_sample=True, num_return_sequences=work.samples, **options)
        assert new.shape == (len(work.pieces) * work.samples, work.new_tokens)

    seconds = timing.seconds(call, theirs.synchronize, samples=3)
    row = {"seconds": seconds, "tokens_per_second": work.tokens / seconds}
    if memory := theirs.peak_gib():
        row["memory_gib"] = memory
    return row


def _agreement(ask: Ask, model: Any, generate: Generate) -> dict[str, Any]:
    """Ours as theirs sees it: `theirs.greedy` of greedy texts, `theirs.apart` of sampled ones."""
    written = side.kept(ask, KEPT)
    if written is None or "greedy_tokens" not in written or "sampled_tokens" not in written:
        raise RuntimeError("ours wrote nothing to compare with")
    greedy, work = written["greedy_tokens"], generate.work
    sampled, logprobs = (written[f"sampled_{name}"][:, 0] for name in ("tokens", "logprobs"))
    text = generate(do_sample=False).cpu().numpy()
    see = functools.partial(theirs.logprobs, model, work.pieces, work.processor)
    return {
        "same_in_all_samples": bool((greedy == greedy[:, :1]).all()),
        **theirs.greedy(see(greedy[:, 0]), greedy[:, 0], text, work.suppress),
        **theirs.apart(see(sampled), sampled, logprobs),
    }
