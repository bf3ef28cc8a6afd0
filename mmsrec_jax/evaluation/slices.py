"""Parts of the test rows that are looked at by themselves, cut by the training data alone (*ours*).

- `new items`: no training interaction has the target (it occurs in validation or test only).
- `cold items`: at most `cold` training interactions have it; new items are among them.
- `cold users`: at most `cold` training interactions are the user's.
- `head items` / `tail items`: the most popular items that together make up `head_share` of the
  training interactions, and the others. Items of equal popularity are on the same side, so every
  row is in exactly one of the two.
"""

import numpy as np

from mmsrec_jax.data.records import Split
from mmsrec_jax.evaluation.beyond_accuracy import Training
from mmsrec_jax.evaluation.metrics import Ranks

WHOLE = "all"
COLD, HEAD_SHARE = 5, 0.5


def slices(
    ranks: Ranks,
    training: Training,
    split: Split,
    *,
    cold: int = COLD,
    head_share: float = HEAD_SHARE,
) -> dict[str, np.ndarray]:
    """Name -> bool[n] over the rows of `ranks`, the whole first."""
    of_target = training.interactions[ranks.targets]
    of_user = split.train_end[ranks.users]
    head = of_target >= head_threshold(training.interactions, head_share)
    return {
        WHOLE: np.ones(len(ranks), bool),
        "new items": of_target == 0,
        f"cold items (<={cold})": of_target <= cold,
        f"cold users (<={cold})": of_user <= cold,
        "head items": head,
        "tail items": ~head,
    }


def head_threshold(interactions: np.ndarray, share: float) -> int:
    """The largest count c for which items of c or more interactions make up `share` of them all."""
    descending = np.sort(interactions)[::-1]
    reached = np.searchsorted(np.cumsum(descending), share * descending.sum())
    return int(descending[min(reached, len(descending) - 1)])
