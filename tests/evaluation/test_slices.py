"""Slices against a loop; nothing but training data decides."""

import numpy as np
import pytest

from mmsrec_jax.data import splits
from mmsrec_jax.data.records import Histories
from mmsrec_jax.evaluation.beyond_accuracy import Training
from mmsrec_jax.evaluation.metrics import Ranks
from mmsrec_jax.evaluation.slices import head_threshold, slices

ITEMS = 60


@pytest.fixture(scope="module")
def histories():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 12, 60)
    owner = np.repeat(np.arange(60), lengths)
    items = rng.zipf(1.4, len(owner)) % (ITEMS - 1)
    items[np.cumsum(lengths)[lengths >= 3][:4] - 1] = ITEMS - 1  # only as a test target
    return Histories.from_rows(np.arange(60).astype(str), owner, items, np.arange(len(owner)))


def cut(histories):
    split = splits.leave_one_out(histories)
    users, positions = split.test.T
    targets = histories.items[histories.offsets[users] + positions]
    ones = np.ones(len(users))
    ranks = Ranks(users, targets, ones, ones, 0 * ones)
    return ranks, slices(ranks, Training.of(histories, split, ITEMS), split, cold=3)


def test_slices_equal_a_loop(histories):
    ranks, found = cut(histories)
    past = [h[:-2] if len(h) >= 3 else h for h in map(histories.of, range(60))]
    counts = np.bincount(np.concatenate(past), minlength=ITEMS)
    head, total = set(), 0
    for level in sorted(set(counts.tolist()), reverse=True):
        if total >= counts.sum() / 2:
            break
        head |= set(np.flatnonzero(counts == level).tolist())
        total = counts[sorted(head)].sum()
    wanted = {
        "all": [True] * len(ranks),
        "new items": [counts[t] == 0 for t in ranks.targets],
        "cold items (<=3)": [counts[t] <= 3 for t in ranks.targets],
        "cold users (<=3)": [len(past[u]) <= 3 for u in ranks.users],
        "head items": [int(t) in head for t in ranks.targets],
        "tail items": [int(t) not in head for t in ranks.targets],
    }
    assert list(found) == list(wanted)
    for name, inside in wanted.items():
        assert found[name].tolist() == inside, name
        assert any(inside) and (name == "all" or not all(inside))


def test_held_out_items_do_not_move_the_slices(histories):
    ranks, found = cut(histories)
    items = histories.items.copy()
    at = histories.offsets[1:][histories.lengths >= 3] - 2  # validation targets
    items[at] = (items[at] + 7) % ITEMS
    changed = Histories(histories.users, histories.offsets, items, histories.timestamps)
    for name, inside in cut(changed)[1].items():
        np.testing.assert_array_equal(inside, found[name])


def test_head_threshold_takes_whole_levels_of_popularity():
    assert head_threshold(np.array([1, 4, 3, 3, 1]), 0.5) == 3
    assert head_threshold(np.array([6, 1, 1]), 0.5) == 6
    assert head_threshold(np.array([2, 2, 2]), 0.5) == 2
