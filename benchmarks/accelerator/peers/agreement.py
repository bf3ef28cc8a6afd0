"""When two sides count as writing the same. `theirs.greedy` and `theirs.apart` make the numbers."""

from collections.abc import Mapping
from typing import Any

CASE = "agreement"
# In bfloat16 a text may go its own way after a near tie.
FIRST_CHOICE, BEHIND, APART = 0.8, 0.2, 0.05
TINY_APART = 1e-4


def check(rows: Mapping[str, Mapping[str, Any]], tiny: bool) -> None:
    """Raises RuntimeError when tokens or their probabilities are others."""
    found = rows.get(CASE)
    if found is None:
        return
    if "error" in found:
        raise RuntimeError(f"the two sides could not be compared: {found['error']}")
    if tiny:
        fine = found["equal_tokens"] == 1 and found["logprobs_apart"] < TINY_APART
    else:
        fine = found["first_choice"] >= FIRST_CHOICE and found["behind"] <= BEHIND
        fine = fine and found["logprobs_apart_mean"] <= APART
    if not fine:
        raise RuntimeError(f"the two sides do not write the same: {dict(found)}")
