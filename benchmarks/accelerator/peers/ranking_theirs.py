"""Candidates scored by transformers: a forward a candidate, and candidates after a cached prefix.

All candidates of all users are one batch. Of the head only the last token's logits of yes and no
are computed. Whole rows are padded on the right and have no mask, which causal attention does not
need then: torch takes its flash kernel. Behind a cache the prefixes are padded on the left.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from benchmarks.accelerator import timing
from benchmarks.accelerator.peers import pieces, side, theirs
from benchmarks.accelerator.peers.pieces import YES_NO, Padded
from benchmarks.accelerator.peers.users import CANDIDATES, KINDS, Users, speeds, users
from benchmarks.accelerator.record import Ask, OutOfTime, attempt

_WAYS = ("shared prefix", "one forward each")
_CASE_SECONDS = 8.0


class Scorer:
    """Scores float32[users * candidates] in two ways."""

    def __init__(self, model: Any, work: Users):
        self.model = model
        whole = [pieces.joined(user.prefix, c) for user in work.users for c in user.candidates]
        self._whole = pieces.padded(whole, work.processor)
        self._prefixes = pieces.padded([u.prefix for u in work.users], work.processor, left=True)
        self._suffixes = pieces.padded(work.candidates, work.processor)
        after = np.repeat([user.prefix.next_position for user in work.users], CANDIDATES)
        self._arguments = {
            name: self._to_device(rows)
            for name, rows in (
                ("whole", self._whole), ("prefix", self._prefixes), ("suffix", self._suffixes)
            )
        }  # fmt: skip
        self._arguments["suffix"]["position_ids"] += theirs.tensor(after)[None, :, None]
        self._mask = theirs.tensor(self._prefixes.mask)
        mask = np.repeat(self._prefixes.mask, CANDIDATES, axis=0)
        self._joined_mask = theirs.tensor(np.concatenate([mask, self._suffixes.mask], axis=1))

    def _to_device(self, rows: Padded) -> dict[str, torch.Tensor]:
        return {
            "input_ids": theirs.tensor(rows.tokens),
            "position_ids": theirs.tensor(rows.positions),
            **theirs.images(rows, self.model.dtype),
        }

    @torch.no_grad()
    def one_forward_each(self) -> torch.Tensor:
        hidden = self.model.model(**self._arguments["whole"], use_cache=False).last_hidden_state
        return self.margins(hidden, self._whole.lengths)

    @torch.no_grad()
    def shared_prefix(self) -> torch.Tensor:
        cache = DynamicCache(config=self.model.config.get_text_config())
        self.model.model(
            **self._arguments["prefix"], attention_mask=self._mask, past_key_values=cache,
            use_cache=True,
        )  # fmt: skip
        cache.batch_repeat_interleave(CANDIDATES)
        hidden = self.model.model(
            **self._arguments["suffix"], attention_mask=self._joined_mask, past_key_values=cache,
            use_cache=True,
        ).last_hidden_state  # fmt: skip
        return self.margins(hidden, self._suffixes.lengths)

    def margins(self, hidden: torch.Tensor, lengths: np.ndarray) -> torch.Tensor:
        """logit(yes) - logit(no) after the last token."""
        last = hidden[torch.arange(len(hidden)), theirs.tensor(lengths - 1)].float()
        yes, no = (self.model.lm_head.weight[i].float() for i in YES_NO)
        return last @ (yes - no)


def measure_theirs(ask: Ask) -> None:
    """Both ways for both kinds, with each implementation of attention there is."""
    for attention in theirs.attentions():
        cases = {f"transformers, {kind}, {way}, {attention}" for kind in KINDS for way in _WAYS}
        if cases <= ask.done:
            continue
        model, seconds = theirs.load(ask.tiny, attention)
        attempt(ask, "transformers, reading weights", functools.partial(dict, load_seconds=seconds))
        for kind in KINDS:
            work = users(ask.tiny, kind)
            scorer = Scorer(model, work)
            for way, call in zip(
                _WAYS, (scorer.shared_prefix, scorer.one_forward_each), strict=True
            ):
                case = f"transformers, {kind}, {way}, {attention}"
                if not ask.tiny and ask.seconds_left() < _CASE_SECONDS:
                    raise OutOfTime(f"before {case}")
                attempt(ask, case, functools.partial(_row, ask, case, call, work))
        del model


def _row(ask: Ask, case: str, call: Callable[[], torch.Tensor], work: Users) -> dict[str, Any]:
    theirs.restart_peak()
    scores = call().cpu().numpy().reshape(-1, CANDIDATES)
    side.keep(ask, case.replace(" ", "_"), scores=scores)
    row = speeds(work, timing.seconds(call, theirs.synchronize, samples=3 if ask.tiny else 5))
    if memory := theirs.peak_gib():
        row["memory_gib"] = memory
    return row
