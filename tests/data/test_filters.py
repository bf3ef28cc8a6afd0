import numpy as np
import pytest

from mmsrec_jax.data import filters
from mmsrec_jax.data.records import Histories
from mmsrec_jax.runtime.errors import UserError


def random_histories(seed, users=30, items=25, rows=220, times=40) -> Histories:
    rng = np.random.default_rng(seed)
    return Histories.from_rows(
        [f"u{u}" for u in range(users)],
        rng.integers(0, users, rows),
        rng.zipf(1.4, rows).clip(max=items) - 1,
        rng.integers(0, times, rows).astype(float),
        rng.integers(1, 6, rows).astype(float),
    )


def as_rows(histories: Histories) -> list[tuple]:
    return [
        (histories.users[u], item, time)
        for u in range(len(histories))
        for item, time in zip(histories.of(u).tolist(), histories.times(u).tolist(), strict=True)
    ]


def brute_k_core(rows, k_users, k_items):
    """Takes away one offending user or item at a time."""
    while True:
        users, items = [r[0] for r in rows], [r[1] for r in rows]
        weak_user = next((u for u in users if users.count(u) < k_users), None)
        weak_item = next((i for i in items if items.count(i) < k_items), None)
        if weak_user is None and weak_item is None:
            return rows
        if weak_user is not None:
            rows = [r for r in rows if r[0] != weak_user]
        else:
            rows = [r for r in rows if r[1] != weak_item]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("users, items", [(1, 1), (5, 5), (8, 3), (2, 12), (50, 1)])
def test_k_core_equals_removing_one_at_a_time(seed, users, items):
    histories = random_histories(seed)
    core = filters.k_core(histories, users=users, items=items)
    assert as_rows(core) == brute_k_core(as_rows(histories), users, items)


def test_first_of_repeats_and_rating_threshold():
    histories = random_histories(3)
    seen, expected = set(), []
    for row in as_rows(histories):
        if row[:2] not in seen:
            expected.append(row)
        seen.add(row[:2])
    assert len(expected) < len(histories.items)
    assert as_rows(filters.first_of_repeats(histories)) == expected
    positives = filters.at_least(histories, 4)
    assert positives.ratings.min() == 4
    assert len(positives.items) == (histories.ratings >= 4).sum()
    unrated = Histories(["a"], [0, 1], [0], [0])
    with pytest.raises(UserError, match="rating_threshold=4"):
        filters.at_least(unrated, 4)


def test_ties_are_broken_by_seed_and_without_a_look_at_the_items():
    histories = random_histories(0, users=3, rows=300, times=9)
    broken = filters.break_ties(histories, seed=1)
    assert as_rows(broken) == as_rows(filters.break_ties(histories, seed=1))
    assert as_rows(broken) != as_rows(filters.break_ties(histories, seed=2))
    for u in range(3):
        assert (np.diff(broken.times(u)) >= 0).all()
    # The multiset of (user, item, time, rating) stays.
    assert sorted(as_rows(broken)) == sorted(as_rows(histories))
    # Renaming the items renames the outcome and nothing else.
    rename = np.random.default_rng(5).permutation(25)
    renamed = Histories(
        histories.users, histories.offsets, rename[histories.items], histories.timestamps
    )
    np.testing.assert_array_equal(filters.break_ties(renamed, seed=1).items, rename[broken.items])


def test_every_order_of_a_tie_is_equally_likely():
    users = 6000  # each with three items of one time, listed by id, between two fixed ones
    items = np.tile([9, 0, 1, 2, 8], users)
    times = np.tile([0.0, 1, 1, 1, 2], users)
    histories = Histories(np.arange(users).astype(str), np.arange(users + 1) * 5, items, times)
    broken = filters.break_ties(histories, seed=0).items.reshape(users, 5)
    assert (broken[:, 0] == 9).all() and (broken[:, 4] == 8).all()
    _, counts = np.unique(broken[:, 1:4], axis=0, return_counts=True)
    assert len(counts) == 6
    # Each order is binomial(6000, 1/6): sd 29.
    assert abs(counts - 1000).max() < 5 * 29


def test_subset_of_users():
    histories = random_histories(1)
    some = filters.subset_users(histories, 7, seed=3)
    assert len(some) == 7
    rows = as_rows(histories)
    assert as_rows(some) == [row for row in rows if row[0] in set(some.users)]
    assert some.users.tolist() != filters.subset_users(histories, 7, seed=4).users.tolist()
    assert as_rows(filters.subset_users(histories, 99, seed=3)) == rows


def test_only_items_and_reindex():
    histories = random_histories(2)
    keep = np.arange(25) % 2 == 0
    even = filters.only_items(histories, keep)
    assert as_rows(even) == [row for row in as_rows(histories) if row[1] % 2 == 0]
    renumbered, kept = filters.reindex(even)
    assert kept.tolist() == sorted(set(even.items.tolist()))
    assert renumbered.items.max() == len(kept) - 1
    np.testing.assert_array_equal(kept[renumbered.items], even.items)


def test_ties_are_broken_alike_in_whatever_parts(monkeypatch):
    rng = np.random.default_rng(0)
    users, times = rng.integers(0, 40, 900), rng.integers(0, 5, 900)
    rows = Histories.from_rows(
        list(map(str, range(40))), users, rng.integers(0, 99, 900), times, rng.random(900)
    )
    key = np.random.default_rng(3).random(900)
    order = np.lexsort((key, rows.timestamps, rows.user_of_row))
    for at_once in (10_000, 100, 1):
        monkeypatch.setattr(filters, "_AT_ONCE", at_once)
        found = filters.break_ties(rows, 3)
        assert np.array_equal(found.items, rows.items[order])
        assert np.array_equal(found.ratings, rows.ratings[order])
        assert np.array_equal(found.timestamps, rows.timestamps)
