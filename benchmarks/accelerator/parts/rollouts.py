"""Rollouts beside transformers' `generate`: 8 samples of 48 tokens for each of 16 items.

Every prompt has an image. No sample ends early, so that both sides write as many tokens; the model
has no adapters.
"""

from benchmarks.accelerator.peers import agreement, side
from benchmarks.accelerator.record import Ask

TITLE = "Rollouts, Qwen2.5-VL-3B's shape, beside transformers' generate"
SECONDS = 80
_RESERVE = 40.0  # seconds kept for transformers


def ours(ask: Ask) -> None:
    from benchmarks.accelerator.peers import rollouts_ours

    rollouts_ours.measure_ours(ask)


def theirs(ask: Ask) -> None:
    from benchmarks.accelerator.peers import rollouts_theirs

    rollouts_theirs.measure_theirs(ask)


def run(ask: Ask) -> None:
    """Raises RuntimeError when the two sides do not write the same, OutOfTime."""
    sides = side.Sides("rollouts", ask)
    ended = sides.both(ours, theirs, reserve=0.0 if ask.tiny else _RESERVE)
    check(sides.rows, ask.tiny)
    side.compare_speed(sides, "ratio", "ours, sampled", "transformers, sampled")
    sides.finish(ended)


def check(rows: side.Rows, tiny: bool) -> None:
    """Raises RuntimeError when tokens or their probabilities are others."""
    agreement.check(rows, tiny)
    found = rows.get(agreement.CASE)
    if found is not None and not found["same_in_all_samples"]:
        raise RuntimeError(f"greedy samples of one prompt differ: {dict(found)}")
