"""What both sides of the part `preferences` write of, and that ours writes every window once."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import windows
from benchmarks.accelerator.parts import preferences
from benchmarks.accelerator.peers import ours, preferences_ours, preferences_work
from benchmarks.accelerator.peers.preferences_work import OURS, THEIRS
from mmsrec_jax.inference.sampler import Generation
from mmsrec_jax.inputs.taste_texts import TasteTexts


@pytest.fixture(scope="module")
def work():
    return preferences_work.work(tiny=True)


@pytest.fixture(scope="module")
def prompts(work):
    """(user, window) -> its prompt, made by itself."""
    tastes, found = work.tastes, {}
    for user, length in enumerate(tastes.histories.lengths):
        for window in range(length // 2):
            source = TasteTexts(
                tastes, np.array([[user, window]]), tastes.preference, profiles=False, length=512
            )
            found[user, window] = tuple(source.example(0, 0).tokens.tolist())
    return found


def test_every_window_is_written_from_its_own_prompt_after_the_one_before_it(work, prompts):
    calls: list[list[tuple[int, ...]]] = []

    def write(batch, rows):
        """Two tokens of a row: how many its prompt has and what they add up to."""
        assert batch.tokens.shape == (work.batch_size, work.tastes.settings.prompt_length)
        live = np.asarray(batch.segment_ids) > 0
        tokens = np.asarray(batch.tokens)
        calls.append([tuple(row[kept].tolist()) for row, kept in zip(tokens, live, strict=True)])
        said = np.stack([live.sum(1), np.where(live, tokens, 0).sum(1)], axis=1)[:, None]
        nothing = np.zeros(said.shape, np.float32)
        return Generation(said, -said.astype(np.float32), nothing, nothing, said[..., 0])

    written = preferences_ours.Texts(work, write, ours.mesh())()
    assert {key: tokens.tolist() for key, (tokens, _) in written.items()} == {
        key: [len(prompt), sum(prompt)] for key, prompt in prompts.items()
    }
    assert all((logprobs == -tokens).all() for tokens, logprobs in written.values())
    made = [prompt for call in calls for prompt in call if prompt]
    assert sorted(made) == sorted(prompts.values())
    call_of = {prompt: n for n, call in enumerate(calls) for prompt in call}
    for (user, window), prompt in prompts.items():
        if window % 3:  # where no chain begins
            assert call_of[prompt] > call_of[prompts[user, window - 1]]


def test_prompts_fit_and_hold_words_alone(work, prompts):
    longest = max(map(len, prompts.values()))
    assert work.tastes.settings.prompt_length - 32 < longest <= work.tastes.settings.prompt_length
    assert not set(work.suppress) & {token for prompt in prompts.values() for token in prompt}


def test_both_sides_write_of_the_same_users(work):
    first = [row for row in work.rows.tolist() if row[0] < work.peer_users]
    assert work.peer_rows.tolist() == first


def test_users_of_a_second_are_those_with_the_windows_of_all(work):
    every = len(work.rows)
    assert windows.speeds(work.tastes, every, 2.0) == {
        "users_per_second": pytest.approx(6 / 2), "windows_per_second": every / 2
    }  # fmt: skip
    half = windows.speeds(work.tastes, every // 2, 2.0)
    assert half["users_per_second"] == pytest.approx(6 / 2 * (every // 2) / every)


def test_the_ratio_is_that_of_users_and_not_of_seconds():
    rows = {
        OURS: {"seconds": 5.0, "users_per_second": 50.0},
        THEIRS: {"seconds": 10.0, "users_per_second": 0.5},
    }
    sides = SimpleNamespace(rows=rows, report=lambda case, row: rows.update({case: row}))
    preferences.compare(sides)
    assert rows["ratio"] == {"ratio": 100.0}
    alone = SimpleNamespace(rows={OURS: rows[OURS]})
    preferences.compare(alone)
    assert list(alone.rows) == [OURS]
