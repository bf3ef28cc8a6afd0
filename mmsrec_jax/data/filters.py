"""Histories in, fewer or reordered histories out; item indices change only in `reindex`."""

from dataclasses import replace
from itertools import pairwise

import numpy as np

from mmsrec_jax.data.records import Histories
from mmsrec_jax.runtime.errors import UserError

REPEATS, WITHOUT_IMAGE = "same item again", "items without image"
"""What a report says of `first_of_repeats`, and of `only_items` where these have an image."""


_AT_ONCE = 1_000_000  # rows, about


def rated_below(rating: float) -> str:
    """What a report says of `at_least`."""
    return f"rated below {rating:g}"


def core_of(users: int, items: int) -> str:
    """What a report says of `k_core`."""
    return f"core of {users} a user, {items} an item"


def at_least(histories: Histories, rating: float) -> Histories:
    """The interactions rated `rating` or higher: the positives.

    Raises:
      UserError: the data has no ratings.
    """
    if histories.ratings is None:
        raise UserError(f"rating_threshold={rating:g}, but the data has no rating column; unset it")
    return histories.select(histories.ratings >= np.float32(rating))


def first_of_repeats(histories: Histories) -> Histories:
    """Each user's first interaction with an item; later ones with the same item are dropped."""
    width = int(histories.items.max(initial=0)) + 1
    _, first = np.unique(histories.user_of_row * width + histories.items, return_index=True)
    keep = np.zeros(len(histories.items), bool)
    keep[first] = True
    return histories.select(keep)


def only_items(histories: Histories, keep: np.ndarray) -> Histories:
    """The interactions with items where keep (bool[N]) holds."""
    return histories.select(keep[histories.items])


def k_core(histories: Histories, *, users: int, items: int) -> Histories:
    """The largest part in which users have `users` and items `items` interactions at least."""
    while True:
        user_of_row = histories.user_of_row
        per_user = np.bincount(user_of_row, minlength=len(histories))
        per_item = np.bincount(histories.items)
        keep = (per_user[user_of_row] >= users) & (per_item[histories.items] >= items)
        if keep.all():
            return histories
        histories = histories.select(keep)


def break_ties(histories: Histories, seed: int) -> Histories:
    """Shuffles each user's interactions of equal timestamp.

    Sources list ties by item id, which a model can learn: with them in file order NDCG on Amazon
    Beauty is a fifth higher.
    """
    rng, offsets, lengths = np.random.default_rng(seed), histories.offsets, histories.lengths
    items, timestamps = np.empty_like(histories.items), np.empty_like(histories.timestamps)
    ratings = None if histories.ratings is None else np.empty_like(histories.ratings)
    # Some users at a time: keys and places of all rows would take more memory than the rows.
    begins = np.unique(np.searchsorted(offsets, np.arange(0, len(items), _AT_ONCE)))
    for begin, end in pairwise([*begins, len(histories)]):
        rows = slice(offsets[begin], offsets[end])
        # One random key per row, drawn without a look at the items.
        key = rng.random(rows.stop - rows.start)
        owners = np.repeat(np.arange(begin, end), lengths[begin:end])
        order = np.lexsort((key, histories.timestamps[rows], owners))
        items[rows] = histories.items[rows][order]
        timestamps[rows] = histories.timestamps[rows][order]
        if ratings is not None and histories.ratings is not None:
            ratings[rows] = histories.ratings[rows][order]
    return replace(histories, items=items, timestamps=timestamps, ratings=ratings)


def subset_users(histories: Histories, n: int, seed: int) -> Histories:
    """n users drawn without replacement, in their old order; all of them when there are fewer."""
    chosen = np.zeros(len(histories), bool)
    chosen[np.random.default_rng(seed).permutation(len(histories))[:n]] = True
    return histories.select(chosen[histories.user_of_row])


def reindex(histories: Histories) -> tuple[Histories, np.ndarray]:
    """Drops the items without an interaction.

    Returns:
      The histories with items renumbered 0..M-1, and int32[M], the old index of each, ascending.
    """
    kept = np.flatnonzero(np.bincount(histories.items)).astype(np.int32)
    new = np.zeros(int(histories.items.max(initial=-1)) + 1, np.int32)
    new[kept] = np.arange(len(kept), dtype=np.int32)
    return replace(histories, items=new[histories.items]), kept
