from dataclasses import replace

import numpy as np
import pytest

from mmsrec_jax.data import filters, splits
from mmsrec_jax.data.records import Histories
from mmsrec_jax.runtime.errors import UserError


def random_histories(seed: int) -> Histories:
    rng = np.random.default_rng(seed)
    user = np.concatenate([np.arange(40), rng.integers(0, 40, 200)])
    user = user[(user % 7 != 0) | (np.arange(len(user)) < 40)]  # every seventh has one row
    return Histories.from_rows(
        [f"u{u}" for u in range(40)],
        user,
        rng.integers(0, 60, len(user)),
        rng.integers(0, 100, len(user)).astype(float),
    )


def pairs(rows: np.ndarray) -> list[tuple[int, int]]:
    assert rows.dtype == np.int32 and rows.shape[1] == 2
    return [tuple(row) for row in rows.tolist()]


@pytest.mark.parametrize("seed", range(4))
def test_leave_one_out_equals_plain_loops(seed):
    histories = random_histories(seed)
    split = splits.leave_one_out(histories)
    train, validation, test, short = [], [], [], 0
    for u in range(len(histories)):
        n = len(histories.of(u))
        end = n
        if n >= 3:
            validation.append((u, n - 2))
            test.append((u, n - 1))
            end = n - 2
        else:
            short += 1
        train += [(u, position) for position in range(1, end)]
        assert split.train_end[u] == end
    assert pairs(split.train) == train
    assert pairs(split.validation) == validation
    assert pairs(split.test) == test
    assert short and split.counts["users with fewer than 3 interactions, train only"] == short


def test_leave_one_out_counts_targets_that_training_is_later_than():
    histories = random_histories(2)
    split = splits.leave_one_out(histories)
    latest = max(
        histories.times(u)[: split.train_end[u]].max(initial=-np.inf) for u in range(len(histories))
    )
    leaks = sum(histories.times(u)[p] < latest for u, p in split.test)
    assert 0 < leaks < len(split.test) and split.counts[splits.LEAK] == leaks
    assert splits.LEAK not in splits.leave_one_out(replace(histories, clock=False)).counts


def test_only_what_is_trained_on_makes_an_earlier_target_a_leak():
    """The latest training interaction is at 12; validation and test targets, later, count not."""
    times = {"a": [0, 1, 4], "b": [9, 10, 11, 12, 13, 100], "c": [5, 6, 7, 8, 12.5], "d": [11]}
    user = np.repeat(np.arange(4), [len(of_user) for of_user in times.values()])
    histories = Histories.from_rows(
        list(times), user, np.arange(len(user)), np.array(sum(times.values(), []), float)
    )
    assert splits.leave_one_out(histories).counts[splits.LEAK] == 1  # that of user a


def test_a_subset_is_drawn_once_and_keeps_its_order():
    rows = np.stack([np.arange(50), np.arange(50)], 1)
    assert splits.subset(rows, 0, seed=1) is rows
    assert splits.subset(rows, 50, seed=1) is rows and splits.subset(rows, 51, seed=1) is rows
    some = splits.subset(rows, 20, seed=1)
    assert some.shape == (20, 2) and (np.diff(some[:, 0]) > 0).all()
    np.testing.assert_array_equal(some, splits.subset(rows, 20, seed=1))
    assert some.tolist() != splits.subset(rows, 20, seed=2).tolist()
    assert len(splits.subset(rows, 1, seed=1)) == 1


@pytest.mark.parametrize("target", ["first", "last"])
@pytest.mark.parametrize("seed", range(4))
def test_global_time_equals_plain_loops(seed, target):
    histories = random_histories(seed)
    split = splits.global_time(
        histories, validation_quantile=0.7, test_quantile=0.85, target=target
    )
    first, second = np.quantile(histories.timestamps, [0.7, 0.85])
    train, found = [], {"validation": [], "test": []}
    seen = {
        item
        for u in range(len(histories))
        for item, time in zip(histories.of(u).tolist(), histories.times(u), strict=True)
        if time < first
    }
    left_out = dict.fromkeys(found, 0)
    untrained = dict.fromkeys(found, 0)
    cold = dict.fromkeys(found, 0)
    for u in range(len(histories)):
        times = histories.times(u).tolist()
        before = [position for position, time in enumerate(times) if time < first]
        assert split.train_end[u] == len(before)
        train += [(u, position) for position in before if position >= 1]
        for part, start, end in (("validation", first, second), ("test", second, np.inf)):
            targets = [position for position, time in enumerate(times) if start <= time < end]
            chosen = targets[0 if target == "first" else -1] if targets else None
            if chosen == 0:
                left_out[part] += 1
            elif chosen:
                found[part].append((u, chosen))
                untrained[part] += not before
                cold[part] += int(histories.of(u)[chosen]) not in seen
    assert pairs(split.train) == train
    for part in found:
        assert pairs(getattr(split, part)) == found[part]
        assert (
            split.counts[f"{part}: users without any earlier interaction, left out"]
            == (left_out[part])
        )
        assert (
            split.counts[f"{part}: users without a training interaction, kept"] == (untrained[part])
        )
        assert (
            split.counts[f"{part}: targets that no training interaction has, kept"] == (cold[part])
        )


def test_the_last_target_is_there_for_users_who_came_after_the_cut():
    """As users of MovieLens do, each rates in one sitting."""
    times = [start + at for start in (0, 100, 200, 300) for at in range(5)]
    sittings = Histories(
        ["a", "b", "c", "d"], [0, 5, 10, 15, 20], list(range(20)), times, clock=True
    )
    cut = {"validation_quantile": 0.5, "test_quantile": 0.75}
    with pytest.raises(UserError, match="no target in validation, test"):
        splits.global_time(sittings, **cut)
    split = splits.global_time(sittings, **cut, target="last")
    assert pairs(split.validation) == [(2, 4)] and pairs(split.test) == [(3, 4)]
    assert split.train_end.tolist() == [5, 5, 0, 0]


@pytest.mark.parametrize("kind", ["leave_one_out", "global_time"])
def test_nothing_of_validation_or_test_is_in_training(kind):
    histories = filters.break_ties(random_histories(5), seed=0)
    if kind == "leave_one_out":
        split = splits.leave_one_out(histories)
    else:
        split = splits.global_time(histories, validation_quantile=0.6, test_quantile=0.8)
    assert split.kind == kind
    train, validation, test = (set(pairs(r)) for r in (split.train, split.validation, split.test))
    assert train and validation and test
    assert not train & validation and not train & test and not validation & test
    for u, position in validation | test:
        assert position >= split.train_end[u]
    for u, position in train:
        assert 1 <= position < split.train_end[u]
    if kind == "global_time":
        latest = max(histories.times(u)[p] for u, p in train)
        assert latest < min(histories.times(u)[p] for u, p in validation)
        assert max(histories.times(u)[p] for u, p in validation) < min(
            histories.times(u)[p] for u, p in test
        )


def test_global_time_refuses_positions():
    positions = Histories(["a", "b"], [0, 3, 5], [1, 2, 3, 4, 5], [0, 1, 2, 0, 1])
    with pytest.raises(UserError, match="positions"):
        splits.global_time(positions, validation_quantile=0.5, test_quantile=0.7)
    # Known not to be a clock, although a filter has torn gaps into the positions.
    gaps = replace(positions, timestamps=[0, 4, 9, 1, 3], clock=False)
    with pytest.raises(UserError, match="positions"):
        splits.global_time(gaps, validation_quantile=0.5, test_quantile=0.7)


def test_global_time_refuses_senseless_quantiles():
    histories = random_histories(0)
    for first, second in ((0.9, 0.8), (0.0, 0.5), (0.5, 1.0), (0.998, 0.999)):
        with pytest.raises(UserError, match=f"validation_quantile={first:g}"):
            splits.global_time(histories, validation_quantile=first, test_quantile=second)


def test_the_last_row_of_each_user():
    rows = np.array([[4, 1], [2, 5], [4, 3], [2, 2], [7, 1], [4, 2]], np.int32)
    assert splits.last_of_each_user(rows).tolist() == [[2, 5], [4, 3], [7, 1]]
    assert splits.last_of_each_user(rows[:0]).shape == (0, 2)
