"""Which interaction is a training, a validation or a test target."""

import numpy as np

from mmsrec_jax.data.records import Histories, Split, are_positions
from mmsrec_jax.runtime.errors import UserError

LEAK = (
    "test: targets earlier than a training interaction of another user, which is a leak in time; "
    "split global_time has none"
)


def leave_one_out(histories: Histories) -> Split:
    """Each user's last interaction is the test target, the one before it the validation target.

    Users with fewer than three interactions only train. Other users' training interactions may be
    later than a test target: `counts` says how many targets that concerns; use `global_time` where
    it matters.
    """
    lengths = histories.lengths
    tested = np.flatnonzero(lengths >= 3)
    train_end = np.where(lengths >= 3, lengths - 2, lengths)
    counts = {"users with fewer than 3 interactions, train only": len(lengths) - len(tested)}
    if histories.clock and not are_positions(histories):
        counts[LEAK] = _earlier_than_training(histories, train_end, tested)
    return _split(
        histories,
        kind="leave_one_out",
        train_end=train_end,
        validation=_rows(tested, lengths[tested] - 2),
        test=_rows(tested, lengths[tested] - 1),
        counts=counts,
    )


def global_time(
    histories: Histories,
    *,
    validation_quantile: float,
    test_quantile: float,
    target: str = "first",
) -> Split:
    """Two moments cut all users: training before the first, validation up to the second, then test.

    The moments are quantiles of all timestamps. A user's target is an interaction at or after a cut
    (for validation: and before the next cut), one at most; interactions before it are the input. A
    user without any has no target.

    Args:
      target: "first" of these interactions: the input ends with the cut; or "last": the input goes
        on behind the cut, and users who came only then have a target too.

    Raises:
      UserError: timestamps are no times, quantiles are out of order or leave a part empty.
    """
    if not histories.clock or are_positions(histories):
        raise UserError(
            "global-time split: the timestamps are positions in the history (0, 1, 2, ...), not "
            "times; split leave_one_out or use data with real times"
        )
    named = f"validation_quantile={validation_quantile:g}, test_quantile={test_quantile:g}"
    if not 0 < validation_quantile < test_quantile < 1:
        raise UserError(f"{named}: need 0 < validation_quantile < test_quantile < 1")
    cuts = np.quantile(histories.timestamps, [validation_quantile, test_quantile])
    train_end, validation_end = (_count_before(histories, cut) for cut in cuts)
    later = {
        "validation": (train_end, validation_end),
        "test": (validation_end, histories.lengths),
    }
    rows, counts = {}, {}
    for part, (start, end) in later.items():
        users = np.flatnonzero(start < end)
        position = start if target == "first" else end - 1
        known = users[position[users] >= 1]
        rows[part] = _rows(known, position[known])
        counts[f"{part}: users without any earlier interaction, left out"] = len(users) - len(known)
        counts[f"{part}: users without a training interaction, kept"] = int(
            (train_end[known] == 0).sum()
        )
    split = _split(histories, kind="global_time", train_end=train_end, counts=counts, **rows)
    empty = [part for part in ("train", "validation", "test") if not len(getattr(split, part))]
    if empty:
        raise UserError(f"{named}: no target in {', '.join(empty)}; choose other quantiles")
    return split


def subset(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """All rows, or `count` of them drawn once, in their order (count 0: all)."""
    if not 0 < count < len(rows):
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), count, replace=False))]


def _split(
    histories: Histories,
    *,
    kind: str,
    train_end: np.ndarray,
    validation: np.ndarray,
    test: np.ndarray,
    counts: dict[str, int],
) -> Split:
    user = histories.user_of_row
    position = np.arange(len(user)) - histories.offsets[user]
    training = position < train_end[user]
    seen = np.zeros(int(histories.items.max(initial=-1)) + 1, bool)
    seen[histories.items[training]] = True
    for part, rows in (("validation", validation), ("test", test)):
        targets = histories.items[histories.offsets[rows[:, 0]] + rows[:, 1]]
        counts[f"{part}: targets that no training interaction has, kept"] = int(
            (~seen[targets]).sum()
        )
    is_target = training & (position >= 1)
    return Split(
        train=_rows(user[is_target], position[is_target]),
        validation=validation,
        test=test,
        kind=kind,
        train_end=train_end.astype(np.int32),
        counts=counts,
    )


def _earlier_than_training(histories: Histories, train_end: np.ndarray, tested: np.ndarray) -> int:
    """Test targets before the latest training interaction, which is never their own user's."""
    user = histories.user_of_row
    training = np.arange(len(user)) - histories.offsets[user] < train_end[user]
    latest = histories.timestamps[training].max(initial=-np.inf)
    return int((histories.timestamps[histories.offsets[tested + 1] - 1] < latest).sum())


def _count_before(histories: Histories, cut: float) -> np.ndarray:
    """int64[U]: interactions of each user before the cut."""
    earlier = np.concatenate([[0], np.cumsum(histories.timestamps < cut)])
    return np.diff(earlier[histories.offsets])


def _rows(users: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return np.stack([users, positions], axis=1).astype(np.int32)


def last_of_each_user(rows: np.ndarray) -> np.ndarray:
    """Of rows int32[n, 2] (user, position) that of the highest position of each user, by user."""
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    users = rows[order, 0]
    return rows[order[users != np.append(users[1:], -1)[: len(users)]]]
