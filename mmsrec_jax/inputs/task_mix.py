"""Which task an example is of."""

from collections.abc import Mapping, Sequence

import numpy as np

from mmsrec_jax.runtime.errors import UserError


def shares(
    tasks: Mapping[str, float], allowed: Sequence[str], name: str
) -> tuple[list[str], np.ndarray]:
    """The tasks with a share, and their shares float[n], which add up to 1.

    name: the setting, for errors.

    Raises:
      UserError: a task that is not allowed, a negative share, or none.
    """
    unknown = sorted(set(tasks) - set(allowed))
    if unknown:
        raise UserError(f"{name} names {unknown[0]!r}; it may name {', '.join(allowed)}")
    used = {task: float(share) for task, share in tasks.items() if share}
    if not used or min(used.values()) < 0:
        raise UserError(f"{name} must give at least one task a positive share")
    return list(used), np.array(list(used.values())) / sum(used.values())
