"""Ranking 1 + 20 beside transformers, with images of the candidates and with keywords alone.

Ours reads a user's history once for all candidates and every candidate once; theirs reads both for
every candidate, or keeps the history in a cache that is copied for the candidates.
"""

import numpy as np

from benchmarks.accelerator.peers import side
from benchmarks.accelerator.peers.users import KINDS, allowed
from benchmarks.accelerator.record import Ask

TITLE = "Ranking 1 + 20, Qwen2.5-VL-3B's shape, beside transformers"
SECONDS = 80
RANKS = 0.95  # least rank correlation, in bfloat16
_RESERVE = 40.0  # seconds kept for transformers


def ours(ask: Ask) -> None:
    from benchmarks.accelerator.peers import ranking_ours

    ranking_ours.measure_ours(ask)


def theirs(ask: Ask) -> None:
    from benchmarks.accelerator.peers import ranking_theirs

    ranking_theirs.measure_theirs(ask)


def run(ask: Ask) -> None:
    """Raises RuntimeError when the two sides score otherwise, OutOfTime."""
    sides = side.Sides("ranking", ask)
    ended = sides.both(ours, theirs, reserve=0.0 if ask.tiny else _RESERVE)
    for kind in KINDS:
        side.compare_speed(sides, f"{kind}, ratio", f"ours, {kind}", f"transformers, {kind}")
        agree(sides, ask, kind)
    sides.finish(ended)


def agree(sides: side.Sides, ask: Ask, kind: str) -> None:
    """Reports how far scores of both sides are apart, and how alike users' candidates are ranked.

    Raises:
      RuntimeError: too far.
    """
    found = {
        case: _scores(ask, case)
        for case, row in sides.rows.items()
        if case.split(", ")[1:2] == [kind] and "seconds" in row
    }
    mine, other = (
        [x for case, x in found.items() if case.startswith(name) and x is not None]
        for name in ("ours", "transformers")
    )
    if not mine or not other:
        return
    pairs = [(a, b) for a in mine for b in other]
    apart = float(np.max([np.abs(a - b).max() for a, b in pairs]))
    ranks = min(spearman(a, b) for a, b in pairs)
    first = min(float((a.argmax(1) == b.argmax(1)).mean()) for a, b in pairs)
    sides.report(
        f"{kind}, agreement",
        {
            "scores_apart": apart,
            "scores_deviation": float(mine[0].std()),
            "rank_correlation": ranks,
            "same_first": first,
        },
    )
    if not (apart <= allowed(ask.tiny) and ranks >= RANKS):
        raise RuntimeError(f"{kind}: scores are {apart:.2e} apart, rank correlation {ranks:.3f}")


def _scores(ask: Ask, case: str) -> np.ndarray | None:
    found = side.kept(ask, case.replace(" ", "_"))
    return None if found is None else found["scores"]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Mean rank correlation of the rows of two arrays [users, candidates]."""
    first, second = (x.argsort(axis=1).argsort(axis=1).astype(float) for x in (a, b))
    return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(first, second, strict=True)]))
