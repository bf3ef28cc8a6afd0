"""What a run knows of a user when a target was chosen, as arguments of `RunScorer.scores`."""

from typing import Any

from mmsrec_jax.methods.scorer import RunScorer


def before(scorer: RunScorer, user: int, position: int) -> dict[str, Any]:
    """Of the interactions before `position`, and the time of the one there, where there is one."""
    histories = scorer.histories
    times = histories.times(user).tolist()
    return {
        "user": str(histories.users[user]),
        "times": times[:position],
        "ratings": histories.ratings[histories.offsets[user] :][:position],
        "now": times[position] if position < len(times) else None,
    }
