"""Rollouts of transformers: `generate` with several sequences a prompt."""

import functools
from typing import Any

import numpy as np
import torch

from benchmarks.accelerator import timing
from benchmarks.accelerator.peers import pieces, side, theirs
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
        new = self.work.new_tokens
        with torch.no_grad():
            out = self.model.generate(
                **self.inputs, max_new_tokens=new, min_new_tokens=new, eos_token_id=None,
                pad_token_id=0, suppress_tokens=list(self.work.suppress), top_k=0, top_p=1.0,
                **options,
            )  # fmt: skip
        return out[:, self.inputs["input_ids"].shape[1] :]


def measure_theirs(ask: Ask) -> None:
    """Sampled with a growing cache; what ours wrote, by their model; sampled with a static cache,
    with which `generate` compiles its step on a GPU."""
    static = _STATIC if theirs.DEVICE.type == "cpu" else _COMPILED
    if {_DYNAMIC, "agreement", static} <= ask.done:
        return
    work = prompts(ask.tiny)
    model, seconds = theirs.load(ask.tiny)
    attempt(ask, "transformers, reading weights", functools.partial(dict, load_seconds=seconds))
    generate = Generate(model, work, model.dtype)
    row = functools.partial(_row, generate)
    attempt(ask, _DYNAMIC, row)
    attempt(ask, "agreement", functools.partial(_agreement, ask, model, generate))
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
    """Ours as theirs sees it.

    equal_tokens: share of greedy tokens that `generate` writes too; after the first other one a
    text goes its own way. first_choice: share of our greedy tokens that are their most likely token
    after ours; behind: by how many nats the others are less likely than theirs at most. logprobs:
    largest and mean difference of log p of tokens that ours sampled.
    """
    written = side.kept(ask, KEPT)
    if written is None or "greedy_tokens" not in written or "sampled_tokens" not in written:
        raise RuntimeError("ours wrote nothing to compare with")
    greedy, sampled = written["greedy_tokens"], written["sampled_tokens"]
    text = generate(do_sample=False).cpu().numpy()
    logprobs = _logprobs(model, generate.work, greedy[:, 0])
    allowed = logprobs.clone()
    allowed[..., list(generate.work.suppress)] = -torch.inf
    chosen = _at(logprobs, greedy[:, 0])
    behind = allowed.amax(-1) - chosen
    other = _at(_logprobs(model, generate.work, sampled[:, 0]), sampled[:, 0]).cpu().numpy()
    apart = np.abs(other - written["sampled_logprobs"][:, 0])
    return {
        "same_in_all_samples": bool((greedy == greedy[:, :1]).all()),
        "equal_tokens": float((text == greedy[:, 0]).mean()),
        "first_choice": float((behind <= 0).float().mean()),
        "behind": float(behind.max()),
        "logprobs_apart": float(apart.max()),
        "logprobs_apart_mean": float(apart.mean()),
    }


def _logprobs(model: Any, work: Prompts, tokens: np.ndarray) -> torch.Tensor:
    """float32[B, T, vocabulary] before each of `tokens` int[B, T] after the prompts."""
    rows = [pieces.with_text(piece, t) for piece, t in zip(work.pieces, tokens, strict=True)]
    joined = pieces.padded(rows, work.processor)
    with torch.no_grad():
        hidden = model.model(
            input_ids=theirs.tensor(joined.tokens),
            position_ids=theirs.tensor(joined.positions),
            **theirs.images(joined, model.dtype),
            use_cache=False,
        ).last_hidden_state
        places = joined.lengths[:, None] - tokens.shape[1] - 1 + np.arange(tokens.shape[1])
        chosen = hidden[torch.arange(len(rows))[:, None], theirs.tensor(places)]
        return torch.log_softmax(model.lm_head(chosen).float(), -1)


def _at(logprobs: torch.Tensor, tokens: np.ndarray) -> torch.Tensor:
    index = theirs.tensor(tokens.astype(np.int64))[..., None]
    return logprobs.gather(-1, index)[..., 0]
