"""Windows by their definition, over many sizes; gaps against counting units."""

import itertools

import numpy as np
import pytest

from mmsrec_jax.data.windows import DAY, Windows, gap_days, gap_words

SIZES = [
    Windows(window, step, chain)
    for window, step, chain in itertools.product((1, 2, 3, 5), (1, 2, 3, 5), (1, 2, 3))
    if step <= window
]


@pytest.mark.parametrize("windows", SIZES, ids=str)
def test_windows_before_a_target_cover_it_in_order_and_hold_nothing_later(windows):
    for position in range(25):
        spans = [windows.span(k) for k in range(windows.count(position))]
        assert all(end <= position for _, end in spans)
        assert all(end - start == min(windows.window, end) for start, end in spans)
        ends = [0, *(end for _, end in spans)]
        assert set(np.diff(ends)) <= {windows.step}
        covered = set().union(*(range(start, end) for start, end in spans))
        assert covered == set(range(ends[-1]))
        assert 0 <= position - ends[-1] < windows.step
        if windows.step == 1 and position:
            assert ends[-1] == position  # the last window ends with the last item before the target


@pytest.mark.parametrize("windows", SIZES, ids=str)
def test_needed_windows_are_those_told_and_their_chains(windows):
    rng = np.random.default_rng(0)
    targets = np.stack([rng.integers(0, 4, 12), rng.integers(0, 30, 12)], axis=1)
    expected = set()
    for user, position in targets.tolist():
        todo = list(windows.told(position))
        assert todo == list(range(windows.count(position)))[-windows.chain :]
        while todo:
            index = todo.pop()
            expected.add((user, index))
            if (previous := windows.previous(index)) is not None:
                assert previous == index - 1
                todo.append(previous)
    assert windows.needed(targets).tolist() == sorted(map(list, expected))


@pytest.mark.parametrize("windows", SIZES, ids=str)
def test_one_more_interaction_needs_one_more_window_at_most(windows):
    for position in range(30):
        before = {tuple(row) for row in windows.needed(np.array([[0, position]]))}
        after = {tuple(row) for row in windows.needed(np.array([[0, position + 1]]))}
        assert len(after - before) <= 1


@pytest.mark.parametrize("step", [1, 2, 3])
def test_profiles_are_written_again_when_a_history_has_doubled(step):
    windows = Windows(4, max(1, step), 2)
    expected = set()
    for position in range(80):
        ends = [step * 2**power for power in range(8) if step * 2**power <= position]
        index = windows.profiled(position)
        assert (None if index is None else windows.span(index)[1]) == (ends[-1] if ends else None)
        if ends:
            expected.add((3, ends[-1]))
    targets = np.array([[3, position] for position in range(80)])
    assert windows.profile_ends(targets).tolist() == sorted(map(list, expected))
    assert windows.profile_ends(targets[:0]).shape == (0, 2)


def test_no_target_needs_no_window():
    assert Windows(4, 2, 3).needed(np.zeros((0, 2))).shape == (0, 2)
    assert Windows(4, 2, 3).needed(np.array([[0, 1]])).shape == (0, 2)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 3, 1), (2, 0, 1), (2, 2, 0)])
def test_windows_that_leave_gaps_are_refused(sizes):
    with pytest.raises(ValueError, match="step <= window"):
        Windows(*sizes)


def test_gaps_in_words_and_as_numbers():
    said = {20: "a moment", 60: "one minute", 2100: "35 minutes", 7500: "two hours",
            2.1 * DAY: "two days", 10 * DAY: "one week", 400 * DAY: "one year"}  # fmt: skip
    assert {seconds: gap_words(seconds) for seconds in said} == said
    assert [gap_days(seconds) for seconds in (0, 2.14 * DAY, 900.0, 123 * DAY)] == [
        "0", "2.1", "0.01", "120"
    ]  # fmt: skip
