"""What a split lets a model know that it should not, counted anew and not as the split says."""

from dataclasses import dataclass

import numpy as np

from mmsrec_jax.data.records import Histories, Split


@dataclass(frozen=True)
class Part:
    """The targets of one part of a split.

    Attributes:
      targets: int64[n], rows of the histories.
      cold: bool[n], no training interaction has the item.
      in_own_input: bool[n], the user had the item before.
      tied: bool[n], at the time of the interaction before it, so that their order says nothing.
      before_training: bool[n], earlier than a training interaction of some user.
    """

    targets: np.ndarray
    cold: np.ndarray
    in_own_input: np.ndarray
    tied: np.ndarray
    before_training: np.ndarray


def parts(histories: Histories, split: Split) -> dict[str, Part]:
    """Of validation and test."""
    user = histories.user_of_row
    row = np.arange(len(user))
    training = row - histories.offsets[user] < split.train_end[user]
    known = np.zeros(int(histories.items.max(initial=-1)) + 1, bool)
    known[histories.items[training]] = True
    latest = histories.timestamps[training].max(initial=-np.inf)
    first = _first_of_pair(user, histories.items)
    found = {}
    for name in ("validation", "test"):
        users, positions = getattr(split, name).astype(np.int64).T
        targets = histories.offsets[users] + positions
        times = histories.timestamps[targets]
        nothing = np.zeros(len(targets), bool)
        found[name] = Part(
            targets=targets,
            cold=~known[histories.items[targets]],
            in_own_input=first[targets] < targets,
            tied=(histories.timestamps[targets - 1] == times) if histories.clock else nothing,
            before_training=(times < latest) if histories.clock else nothing,
        )
    return found


def _first_of_pair(user: np.ndarray, items: np.ndarray) -> np.ndarray:
    """int64[T]: the first row of the same user and item."""
    order = np.lexsort((items, user))  # stable: rows of a pair stay in their order
    begins = np.ones(len(order), bool)
    begins[1:] = (user[order][1:] != user[order][:-1]) | (items[order][1:] != items[order][:-1])
    first = np.empty(len(order), np.int64)
    first[order] = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    return first
