"""Train steps of transformers and peft on the segments of our packed rows.

A segment is a row of its own. Rows of similar length make a micro-batch, padded on the right;
without a mask, which causal attention does not need then, torch takes its flash kernel. Logits are
made of the answers alone. bfloat16 by autocast: adapters and, in full fine-tuning, all weights are
float32.
"""

import functools
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from benchmarks.accelerator import timing
from benchmarks.accelerator.peers import pieces, theirs
from benchmarks.accelerator.peers.sft_work import (
    ALPHA,
    BETA2,
    CLIP,
    LEARNING_RATE,
    RANK,
    Segment,
    Work,
    speeds,
    work,
)
from benchmarks.accelerator.record import Ask, OutOfTime, attempt

LORA, FULL = "transformers, LoRA", "transformers, full"
_CASE_SECONDS = 20.0
_ADAPTED = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"


class Micro:
    """Some segments as tensors; `chosen` are (row, place before it) of every target."""

    def __init__(self, segments: list[Segment], work: Work, dtype: torch.dtype):
        joined = [pieces.with_text(each.prompt, each.answer) for each in segments]
        rows = pieces.padded(joined, work.processor)
        targets = work.sizes.targets
        places = rows.lengths[:, None] - targets + np.arange(targets)
        self.inputs = {
            "input_ids": theirs.tensor(rows.tokens),
            "position_ids": theirs.tensor(rows.positions),
            **theirs.images(rows, dtype),
        }
        self.rows = theirs.tensor(np.repeat(np.arange(len(segments)), targets))
        self.before = theirs.tensor(places.ravel() - 1)
        self.targets = self.inputs["input_ids"][self.rows, self.before + 1]


class Trainer:
    """One update at a call, of all segments; returns loss and norm of the gradient."""

    def __init__(self, model: Any, work: Work, micros: int, tiny: bool):
        self.model, self.tiny = model, tiny
        dtype = torch.float32 if tiny else torch.bfloat16
        by_length = sorted(work.segments, key=len)
        self.micros = [
            Micro([by_length[i] for i in part], work, dtype)
            for part in np.array_split(np.arange(len(by_length)), micros)
        ]
        self.count = sum(len(micro.targets) for micro in self.micros)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=LEARNING_RATE, betas=(0.9, BETA2), eps=1e-8, weight_decay=0.0,
            fused=True,
        )  # fmt: skip

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        total = torch.zeros((), device=theirs.DEVICE)
        for micro in self.micros:
            loss = self._loss(micro)
            loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.trained, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, norm

    def _loss(self, micro: Micro) -> torch.Tensor:
        with torch.autocast(theirs.DEVICE.type, torch.bfloat16, enabled=not self.tiny):
            hidden = self.model.model(**micro.inputs, use_cache=False).last_hidden_state
            logits = self.model.lm_head(hidden[micro.rows, micro.before])
        summed = torch.nn.functional.cross_entropy(logits.float(), micro.targets, reduction="sum")
        return summed / self.count


def measure_theirs(ask: Ask) -> None:
    """Their cases: without gradient checkpointing in as many micro-batches as we have rows."""
    data = work(ask.tiny)
    for attention in theirs.attentions():
        cases = {
            f"{LORA}, {attention}, {len(data.rows)} micro-batches": (len(data.rows), False),
            f"{LORA}, {attention}, gradient checkpointing": (1, True),
        }
        if all(case in ask.done for case in cases):
            continue
        _check_time(ask)
        model, seconds = theirs.load(ask.tiny, attention)
        attempt(ask, "transformers, reading weights", functools.partial(dict, load_seconds=seconds))
        _adapt(model)
        for case, (micros, checkpointing) in cases.items():
            _check_time(ask)
            attempt(ask, case, functools.partial(_row, model, data, micros, checkpointing, ask))
        del model
    case = f"{FULL}, {theirs.attentions()[-1]}, gradient checkpointing"
    if case not in ask.done:
        _check_time(ask)
        model, _ = theirs.load(ask.tiny, theirs.attentions()[-1], torch.float32)
        attempt(ask, case, functools.partial(_row, model, data, 2, True, ask))


def _check_time(ask: Ask) -> None:
    if not ask.tiny and ask.seconds_left() < _CASE_SECONDS:
        raise OutOfTime("before a case of transformers")


def _adapt(model: Any) -> None:
    """Float32 adapters of peft, in place, on the layers that ours adapts."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=_ADAPTED)
    get_peft_model(model, config)


def _row(model: Any, data: Work, micros: int, checkpointing: bool, ask: Ask) -> dict[str, Any]:
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()
    _restart_adapters(model)
    theirs.restart_peak()
    trainer = Trainer(model, data, micros, ask.tiny)
    loss, norm = trainer()
    row = {"loss": float(loss), "gradient_norm": float(norm)}
    seconds = timing.seconds(trainer, theirs.synchronize, samples=3)
    adapters = any("lora_" in name for name, _ in model.named_parameters())
    row |= speeds(data, seconds, ask.tiny, adapters=adapters, device=theirs.device_name())
    if memory := theirs.peak_gib():
        row["memory_gib"] = memory
    return row


def _restart_adapters(model: Any) -> None:
    """Every case begins with adapters that change nothing, as ours do."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
