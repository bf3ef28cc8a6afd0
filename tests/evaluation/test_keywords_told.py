"""Places of a history by what a prompt tells of the choices, against a loop."""

import numpy as np
import pytest

from mmsrec_jax.data import splits
from mmsrec_jax.data.records import Histories
from mmsrec_jax.evaluation import keywords
from mmsrec_jax.prompts import TERSE, choices

HISTORY = 4


@pytest.fixture(scope="module")
def histories():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, 60)
    count = int(lengths.sum())
    ratings = rng.choice([1.0, 2.0, 3.0, 4.0, 5.0, np.nan], count, p=[0.1, 0.1, 0.3, 0.2, 0.2, 0.1])
    return Histories(
        users=np.arange(60).astype(str),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=np.concatenate([rng.choice(40, n, replace=False) for n in lengths]),
        timestamps=np.cumsum(rng.choice([60.0, 1e5], count)),
        ratings=ratings,
    )


def test_copies_hold_the_items_that_were_rated_so_or_came_before_a_pause(histories):
    rows = splits.leave_one_out(histories).test
    got = keywords.told(histories, rows, history=HISTORY, ratings=True, pauses=True)
    copies = got.reshape(len(rows), -1, HISTORY)
    known = histories.ratings[~np.isnan(histories.ratings)]
    for row, (user, position) in enumerate(rows):
        items, times = histories.of(user), histories.times(user)
        ratings = histories.ratings[histories.offsets[user] :][: len(items)]
        for place in range(HISTORY):
            at = position - 1 - place
            held = [copy for copy in copies[row, :-1, place] if copy >= 0]
            if at < 0 or np.isnan(ratings[at]):
                assert not held
            else:
                assert held == [items[at]]
            paused = at >= 0 and any(
                choices.followed(TERSE, "", gap) for gap in np.diff(times[at : position + 1])
            )
            assert copies[row, -1, place] == (items[at] if paused else -1)
    # Within a copy ratings are next to each other, and a higher copy has higher ones.
    assert 3 <= copies.shape[1] - 1 <= len(np.unique(known))
    own = histories.ratings[histories.offsets[rows[:, 0]] + rows[:, 1] - 1]
    places = [own[copies[:, copy, 0] >= 0] for copy in range(copies.shape[1] - 1)]
    for lower, higher in zip(places, places[1:], strict=False):
        assert lower.max() < higher.min()


def test_what_prompts_do_not_tell_has_no_copy(histories):
    rows = splits.leave_one_out(histories).test
    got = keywords.told(histories, rows, history=HISTORY, ratings=False, pauses=False)
    assert got.shape == (len(rows), 0)
