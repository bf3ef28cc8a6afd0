"""Texts of users' windows beside transformers' `generate`, called for one window at a time.

256 users with 1,080 windows here, the first three of them there: MLLM-SRec's published predecessors
loop over users. No text ends early, so that both sides write as many tokens.
"""

from benchmarks.accelerator.peers import agreement, side
from benchmarks.accelerator.peers.preferences_work import OURS, THEIRS
from benchmarks.accelerator.record import Ask

TITLE = "Texts of users' windows, Qwen2.5-VL-3B's shape, beside transformers' generate"
SECONDS = 50
_RESERVE = 22.0  # seconds kept for transformers


def ours(ask: Ask) -> None:
    from benchmarks.accelerator.peers import preferences_ours

    preferences_ours.measure_ours(ask)


def theirs(ask: Ask) -> None:
    from benchmarks.accelerator.peers import preferences_theirs

    preferences_theirs.measure_theirs(ask)


def run(ask: Ask) -> None:
    """Raises RuntimeError when the two sides do not write the same, OutOfTime."""
    sides = side.Sides("preferences", ask)
    ended = sides.both(ours, theirs, reserve=0.0 if ask.tiny else _RESERVE)
    agreement.check(sides.rows, ask.tiny)
    compare(sides)
    sides.finish(ended)


def compare(sides: side.Sides) -> None:
    """Reports how many times faster ours is; nothing when a side was not measured."""
    rates = [sides.rows.get(case, {}).get("users_per_second") for case in (OURS, THEIRS)]
    if None not in rates and "ratio" not in sides.rows:
        sides.report("ratio", {"ratio": rates[0] / rates[1]})
