"""Supervised fine-tuning beside transformers and peft: one train step of a 3B model.

Rows of 4,096 tokens that hold several segments with an image each; LoRA of rank 16 and full
fine-tuning. `peers.sft_ours` and `peers.sft_theirs` say what each side computes.
"""

import numpy as np

from benchmarks.accelerator.peers import side
from benchmarks.accelerator.peers.sft_work import norm_tolerance, tolerance
from benchmarks.accelerator.record import Ask

TITLE = "SFT step, Qwen2.5-VL-3B's shape, beside transformers + peft"
SECONDS = 165
_RESERVE = 70.0  # seconds kept for transformers while ours goes on with less telling cases


def ours(ask: Ask) -> None:
    from benchmarks.accelerator.peers import sft_ours

    sft_ours.measure_ours(ask)


def theirs(ask: Ask) -> None:
    from benchmarks.accelerator.peers import sft_theirs

    sft_theirs.measure_theirs(ask)


def run(ask: Ask) -> None:
    """Raises RuntimeError when losses of the same weights and rows differ, OutOfTime."""
    sides = side.Sides("sft", ask)
    ended = sides.both(ours, theirs, reserve=0.0 if ask.tiny else _RESERVE)
    side.compare_speed(sides, "LoRA, ratio", "ours, LoRA", "transformers, LoRA")
    side.compare_speed(sides, "full, ratio", "ours, full", "transformers, full")
    check(sides.rows, tolerance(ask.tiny), norm_tolerance(ask.tiny))
    sides.finish(ended)


def check(rows: side.Rows, of_losses: float, of_norms: float) -> None:
    """Raises RuntimeError when a loss, or the gradient of full fine-tuning, is another one."""
    losses = {case: row["loss"] for case, row in rows.items() if "loss" in row}
    norms = {
        case: row["gradient_norm"]
        for case, row in rows.items()
        if ", full, " in case and "gradient_norm" in row
    }
    for name, found, allowed in (
        ("loss", losses, of_losses),
        ("gradient_norm", norms, of_norms),
    ):
        if found and not np.ptp(list(found.values())) <= allowed * max(found.values()):
            raise RuntimeError(f"{name} differs by more than {allowed} of it: {found}")
