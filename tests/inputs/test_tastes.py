"""What counting says of windows and histories, against plain loops; nothing later is read."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import toy_items
import toy_tastes
from toy_tastes import HISTORIES, ROWS

from mmsrec_jax.data.windows import DAY, gap_words
from mmsrec_jax.inputs.taste_texts import ComputedTexts, TasteTexts
from mmsrec_jax.inputs.tastes import PreferenceSettings
from mmsrec_jax.runtime.errors import UserError


@pytest.fixture(scope="module")
def prompt_config(trained):
    return toy_items.prompt_config(trained, ratings=True, pauses=True)


@pytest.fixture(scope="module")
def tastes(prompt_config):
    return toy_tastes.tastes(prompt_config)


def of(user, start, end, liked):
    """Keywords of the user's liked or disliked items, the latest item first."""
    rows = range(HISTORIES.offsets[user] + start, HISTORIES.offsets[user] + end)
    chosen = [i for i in reversed(rows) if (HISTORIES.ratings[i] >= 4) == liked]
    return [toy_items.keywords()[HISTORIES.items[i]].split(", ") for i in chosen]


def most(user, start, end):
    """The three most frequent liked words, ties by the latest; disliked ones that outnumber."""
    liked, disliked = (
        Counter(word for words in of(user, start, end, kind) for word in words)
        for kind in (True, False)
    )
    order = {word: at for at, word in enumerate(liked)}
    likes = sorted(liked, key=lambda word: (-liked[word], order[word]))[:3]
    order = {word: at for at, word in enumerate(disliked)}
    against = [word for word in disliked if disliked[word] > liked[word]]
    against = sorted(against, key=lambda word: (-disliked[word], order[word]))[:3]
    return likes, [word for word in against if word not in likes]


def said(**parts):
    names = {"likes": "likes", "dislikes": "not", "came": "new", "went": "gone"}
    return " ".join(f"{names[k]} {' '.join(words)}" for k, words in parts.items() if words)


def test_texts_of_windows_and_histories(tastes):
    moved = 0
    for user in range(6):
        for index in range(len(HISTORIES.of(user)) // 2):
            end = 2 * index + 2
            likes, dislikes = most(user, max(0, end - 4), end)
            came = went = ()
            if index % 2:  # chains have two windows
                before, _ = most(user, max(0, end - 6), end - 2)
                came = [word for word in likes if word not in before]
                went = [word for word in before if word not in likes]
                moved += bool(came) and bool(went)
            expected = said(likes=likes, dislikes=dislikes, came=came, went=went)
            assert tastes.preference(user, index) == expected
            likes, dislikes = most(user, 0, end)
            assert tastes.profile(user, index) == said(likes=likes, dislikes=dislikes)
    assert moved > 3


def pause(seconds):
    names = ((3600, ""), (DAY, " hours"), (7 * DAY, " days"), (30 * DAY, " weeks"))
    return next(name for end, name in names if seconds < end)


def test_entries_tell_ratings_and_the_pauses_between_them(tastes, prompt_config):
    words, user = tastes.renderer.words, 4
    items, ratings = HISTORIES.of(user)[2:7], HISTORIES.ratings[HISTORIES.offsets[4] + 2 :][:5]
    pauses = [*map(pause, np.diff(HISTORIES.times(user))[2:6]), ""]  # the last one is later
    assert len(set(pauses)) > 1
    expected = [
        f"{words(int(item))} {rating:g}{told}"
        for item, rating, told in zip(items, ratings, pauses, strict=True)
    ]
    assert tastes.entries(user, 2, 7) == expected
    blind = toy_tastes.tastes(prompt_config, clock=False).entries(user, 2, 7)
    assert blind == [f"{words(int(i))} {r:g}" for i, r in zip(items, ratings, strict=True)]
    bare = dataclasses.replace(prompt_config, ratings=False, pauses=False)
    assert toy_tastes.tastes(bare).entries(user, 2, 7) == [words(int(i)) for i in items]


def test_without_windows_there_is_one_text_of_all_so_far(prompt_config):
    static = toy_tastes.tastes(prompt_config, dynamic=False)
    for index in range(4):
        likes, dislikes = most(4, 0, 2 * index + 2)
        assert static.preference(4, index) == said(likes=likes, dislikes=dislikes)
    assert list(static.windows.told(9)) == [3]


def test_low_ratings_are_kept(prompt_config, tastes):
    liked = HISTORIES.ratings >= 4
    np.testing.assert_array_equal(tastes.positives, liked)
    every = toy_tastes.tastes(prompt_config, settings={"positives": "all"})
    assert every.positives.all()
    for user in range(6):
        rows = slice(HISTORIES.offsets[user], HISTORIES.offsets[user] + 4)
        expected = HISTORIES.items[rows][~liked[rows]]
        np.testing.assert_array_equal(tastes.disliked(user, 4), expected)


def changed_after(user, position):
    """Every item and rating from the position on is another; later times too."""
    items, ratings, times = (
        getattr(HISTORIES, name).copy() for name in ("items", "ratings", "timestamps")
    )
    at = HISTORIES.offsets[user] + position
    end = HISTORIES.offsets[user + 1]
    items[at:end], ratings[at:end] = (items[at:end] + 7) % 24, 6 - ratings[at:end]
    times[at + 1 : end] += 99 * DAY
    return dataclasses.replace(HISTORIES, items=items, ratings=ratings, timestamps=times)


def test_texts_before_a_target_read_nothing_at_or_after_it(prompt_config, tastes):
    for user, position in ROWS[::3].tolist():
        other = toy_tastes.tastes(prompt_config, changed_after(user, position))
        keys = tastes.windows.needed(np.array([[user, position]]))
        for profiles in (False, True):
            one, two = (
                TasteTexts(made, keys, made.preference, profiles=profiles, length=200)
                for made in (tastes, other)
            )
            for row in range(len(keys)):
                assert one.text(row) == two.text(row) and one.computed(row) == two.computed(row)


def test_prompts_show_the_window_and_what_was_written_before(tastes):
    source = TasteTexts(
        tastes, np.array([[4, 0], [4, 1]]), lambda user, k: f"text {user} {k}",
        profiles=False, length=200,
    )  # fmt: skip
    shown = ", ".join(tastes.entries(4, 0, 2))
    assert source.text(0) == f"had {shown}\nwrite taste"
    shown = ", ".join(tastes.entries(4, 0, 4))
    since = gap_words(HISTORIES.times(4)[3] - HISTORIES.times(4)[1])
    assert source.text(1) == f"before text 4 0\nsince {since}\nhad {shown}\nwrite taste"
    source = TasteTexts(
        tastes, np.array([[4, 3]]), lambda user, k: f"text {user} {k}", profiles=True, length=200
    )
    counted = tastes.counts(4, 0, 8, liked=True).most_common(12)
    often = ", ".join(f"{word} {number}" for word, number in counted)
    assert source.text(0) == f"taste text 4 2 text 4 3\noften {often}\nwrite profile"


def test_long_prompts_lose_their_oldest_items_first(tastes):
    rows = np.array([[4, 3]])
    whole = TasteTexts(tastes, rows, tastes.preference, profiles=False, length=200)
    n = len(whole.example(0, 0))
    short = TasteTexts(tastes, rows, tastes.preference, profiles=False, length=n - 1)
    example = short.example(0, 0)
    assert len(example) < n and example.counts == {"window_left_out": 1}
    with pytest.raises(UserError, match="prompt_length=3"):
        TasteTexts(tastes, rows, tastes.preference, profiles=False, length=3).example(0, 0)


def test_examples_answer_the_prompts_that_are_written_for(tastes, trained):
    rows = np.array([[4, k] for k in range(4)])
    source = ComputedTexts(tastes, rows, length=200, answer=24, profiles=0.5, seed=0)
    kinds = Counter()
    for draw in range(30):
        row = draw % 4
        example = source.example(row, draw)
        weighted = np.flatnonzero(example.loss_weights)
        assert weighted.tolist() == list(range(weighted[0], len(example)))
        said = trained.decode(example.tokens[weighted])
        for profiles in (False, True):
            asked = TasteTexts(tastes, rows, tastes.preference, profiles=profiles, length=200)
            if np.array_equal(asked.example(row, 0).tokens, example.tokens[: weighted[0]]):
                kinds[profiles] += 1
                assert said == f" {asked.computed(row)}<|im_end|>".replace("  ", " ")
    assert sum(kinds.values()) == 30 and min(kinds.values()) > 8
    short = ComputedTexts(tastes, rows, length=200, answer=4, profiles=0.0, seed=0).example(1, 0)
    assert short.num_targets == 4 and short.counts["answers_cut"] == 1
    with pytest.raises(UserError, match="step=2: no user has as many"):
        ComputedTexts(tastes, rows[:0], length=200, answer=4, profiles=0.0, seed=0)


def test_a_step_beyond_the_window_is_refused():
    with pytest.raises(UserError, match="step=6: must be at most window=5"):
        PreferenceSettings(window=5, step=6).check("config.preferences")
