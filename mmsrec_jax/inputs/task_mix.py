"""Which task an example is of, and how much of a text it shows."""

from collections.abc import Mapping, Sequence

import numpy as np

from mmsrec_jax.runtime.errors import UserError


def limits(text_tokens: int) -> list[tuple[int, bool]]:
    """Lengths of text to try, and whether each is the last."""
    tried = [text_tokens]
    while tried[-1] > 0:
        tried.append(tried[-1] // 2)
    return [(limit, limit == 0) for limit in tried]


def shares(tasks: Mapping[str, float], allowed: Sequence[str], name: str):
    unknown = sorted(set(tasks) - set(allowed))
    if unknown:
        raise UserError(f"{name} names {unknown[0]!r}; it may name {', '.join(allowed)}")
    used = {task: float(share) for task, share in tasks.items() if share}
    if not used or min(used.values()) < 0:
        raise UserError(f"{name} must give at least one task a positive share")
    return list(used), np.array(list(used.values())) / sum(used.values())
