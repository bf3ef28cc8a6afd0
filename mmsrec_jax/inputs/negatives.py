"""Items that a user is shown besides the one that was chosen."""

import numpy as np

from mmsrec_jax.data.records import Histories
from mmsrec_jax.runtime.errors import UserError


def with_negatives(
    rng: np.random.Generator,
    histories: Histories,
    user: int,
    target: int,
    *,
    num_items: int,
    negatives: int,
    train_end: np.ndarray | None,
    retrieved: np.ndarray | None = None,
    share: float = 0.0,
) -> np.ndarray:
    """int32[1 + negatives], the target at a random position.

    Negatives are uniform over the items that are neither the target nor among the user's training
    interactions `of(user)[:train_end[user]]` (None = all interactions). Each is with probability
    `share` one of `retrieved` int32[K] instead, as far as these last; -1 is none (*ours*).

    Raises:
      UserError: too few items are left.
    """
    seen = histories.of(user)
    if train_end is not None:
        seen = seen[: train_end[user]]
    known = {target, *seen.tolist()}
    if num_items - len(known) < negatives:
        raise _too_few(histories, user, num_items - len(known), negatives)
    chosen: list[int] = []
    if share and retrieved is not None:
        usable = retrieved[(retrieved >= 0) & ~np.isin(retrieved, list(known))]
        chosen = rng.permutation(usable)[: rng.binomial(negatives, share)].tolist()
        known.update(chosen)
    missing = negatives - len(chosen)
    if num_items > 4 * (len(known) + missing):
        while len(chosen) < negatives:
            item = int(rng.integers(num_items))
            if item not in known:
                known.add(item)
                chosen.append(item)
    else:
        rest = np.setdiff1d(np.arange(num_items), np.fromiter(known, np.int64))
        chosen += rng.choice(rest, missing, replace=False).tolist()
    return rng.permutation(np.array([target, *chosen], np.int32))


def check_negatives(
    histories: Histories,
    users: np.ndarray,
    train_end: np.ndarray,
    *,
    num_items: int,
    negatives: int,
) -> None:
    """Raises what `with_negatives` would raise for a training target of one of these users."""
    owner = np.repeat(np.arange(len(histories)), histories.lengths)
    position = np.arange(len(histories.items)) - histories.offsets[owner]
    read = position < train_end[owner]
    known = np.unique(owner[read] * num_items + histories.items[read].astype(np.int64))
    left = num_items - np.bincount(known // num_items, minlength=len(histories))
    users = np.unique(users)
    worst = users[np.argmin(left[users])]
    if left[worst] < negatives:
        raise _too_few(histories, worst, int(left[worst]), negatives)


def _too_few(histories: Histories, user: int, left: int, negatives: int) -> UserError:
    return UserError(
        f"config.sft.negatives={negatives}: {left} items of the catalog are left for user "
        f"{str(histories.users[user])!r}; lower it"
    )
