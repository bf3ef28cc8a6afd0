"""Keyword scorers against a loop over sets of words; a planted signal is found, the test unread."""

import dataclasses

import numpy as np
import pytest

from mmsrec_jax.data import splits
from mmsrec_jax.data.records import Histories
from mmsrec_jax.evaluation import keywords, ranking
from mmsrec_jax.evaluation.protocols import sampled, up_to

ITEMS, USERS, HISTORY = 40, 300, 3


@pytest.fixture(scope="module")
def words():
    rng = np.random.default_rng(0)
    found = [set(rng.choice(list("abcdefghij"), rng.integers(1, 5)).tolist()) for _ in range(ITEMS)]
    found[7] = set()
    return found


@pytest.fixture(scope="module")
def histories():
    rng = np.random.default_rng(1)
    lengths = rng.integers(3, 9, USERS)
    return Histories(
        users=np.arange(USERS).astype(str),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=np.concatenate([rng.choice(ITEMS, n, replace=False) for n in lengths]),
        timestamps=np.concatenate([np.arange(n) for n in lengths]),
    )


@pytest.fixture(scope="module")
def split(histories):
    return splits.leave_one_out(histories)


@pytest.fixture(scope="module")
def neighbors():
    found = np.random.default_rng(2).integers(0, ITEMS, (USERS, 2)).astype(np.int32)
    found[::5, 1] = -1
    return found


def listed_by_hand(histories, row, neighbors):
    user, position = row
    latest = histories.of(user)[:position][::-1][:HISTORY].tolist()
    return latest + [-1] * (HISTORY - len(latest)) + neighbors.tolist()


def counts_by_hand(words, candidate, listed):
    return [len(words[candidate] & words[item]) if item >= 0 else 0 for item in listed]


def test_places_are_what_a_prompt_lists(histories, split, neighbors):
    got = keywords.places(histories, split.validation, history=HISTORY, neighbors=neighbors)
    wanted = [
        listed_by_hand(histories, *pair) for pair in zip(split.validation, neighbors, strict=True)
    ]
    assert got.tolist() == wanted and min(split.validation[:, 1]) == 1  # some are short
    alone = keywords.places(histories, split.validation, history=HISTORY, neighbors=None)
    assert alone.tolist() == [row[:HISTORY] for row in wanted]


def test_shared_words_and_scores_equal_a_loop(words, histories, split, neighbors, monkeypatch):
    monkeypatch.setattr(keywords, "_PAIRS", 1000)  # in many parts
    listed = keywords.places(histories, split.test, history=HISTORY, neighbors=neighbors)
    incidence = keywords.incidence(words)
    every = np.broadcast_to(np.arange(ITEMS), (USERS, ITEMS))
    got = keywords.shared(incidence, every, listed)
    wanted = np.array([[counts_by_hand(words, c, row) for c in range(ITEMS)] for row in listed])
    np.testing.assert_array_equal(got, wanted)

    weights = keywords.decaying(HISTORY, 2)
    np.testing.assert_allclose(weights, [1, 0.8, 0.64, 1, 1])
    scorer = keywords.KeywordScorer("x", incidence, listed, weights)
    at = np.array([5, 0, 5, 299])
    np.testing.assert_allclose(scorer.row_scores(at), wanted[at] @ weights, atol=0.01)
    np.testing.assert_array_equal(scorer.row_scores(at), wanted[at].astype(float) @ scorer.weights)


def test_equal_evidence_ties_whatever_it_is_summed_from(words):
    """0.7 + 0.1 is not 0.8 in binary; here it is, so that ties do not depend on rounding."""
    pair = [{"a", "b"}, {"a"}, {"b"}, {"a", "b"}, {"c"}]
    listed = np.array([[1, 2, 4]])
    scorer = keywords.KeywordScorer("x", keywords.incidence(pair), listed, [0.7, 0.1, 0.7 + 0.1])
    scores = scorer.row_scores(np.array([0]))[0]
    assert scores[0] == scores[3] == scores[4] == pytest.approx(0.8, abs=1e-3)


def test_ranks_under_both_protocols_equal_a_loop(words, histories, split, neighbors):
    """Rows are ranked in another order than they come; neighbors must follow."""
    listed = keywords.places(histories, split.test, history=HISTORY, neighbors=neighbors)
    scorer = keywords.KeywordScorer("x", keywords.incidence(words), listed, [1, 0.5, 0.25, 2, 1])
    frozen = sampled(histories, split.test, n=9, seed=0, num_items=ITEMS)
    full, among = ranking.full_and_sampled(scorer, histories, [frozen], chunk=32, top=3)
    for n, (user, position) in enumerate(split.test):
        past, target = histories.of(user)[:position], int(histories.of(user)[position])
        scores = [
            float(np.dot(counts_by_hand(words, c, listed[n]), scorer.weights)) for c in range(ITEMS)
        ]
        competing = sorted(set(range(ITEMS)) - set(past.tolist()))
        assert full.ranks[n] == sum(scores[c] >= scores[target] for c in competing)
        assert among.ranks[n] == sum(scores[c] >= scores[target] for c in frozen.items[n])
        assert full.top[n].tolist() == sorted(competing, key=lambda c: (-scores[c], c))[:3]


def fit(words, histories, split, neighbors):
    listed = keywords.places(histories, split.validation, history=HISTORY, neighbors=neighbors)
    return keywords.fitted(
        keywords.incidence(words), histories, split.validation, listed, negatives=9, seed=0
    )


@pytest.mark.parametrize("place", range(HISTORY + 2))
def test_a_signal_in_one_place_is_found_there(words, histories, split, neighbors, place):
    """The validation target repeats words of the item at that place."""
    listed = keywords.places(histories, split.validation, history=HISTORY, neighbors=neighbors)
    rng, items = np.random.default_rng(3), histories.items.copy()
    for (user, position), row in zip(split.validation, listed, strict=True):
        like = [counts_by_hand(words, c, row)[place] for c in range(ITEMS)]
        best = np.flatnonzero(np.array(like) == max(like))
        free = np.setdiff1d(best, histories.of(user)[: position + 2])
        if len(free):
            items[histories.offsets[user] + position] = rng.choice(free)
    planted = dataclasses.replace(histories, items=items)
    weights = fit(words, planted, split, neighbors)
    assert np.argmax(weights) == place and weights[place] > 1
    assert np.abs(np.delete(weights, place)).max() < 0.5


def test_weights_do_not_see_the_test(words, histories, split, neighbors):
    last = histories.offsets[1:] - 1
    items = histories.items.copy()
    items[last] = np.random.default_rng(4).permutation(items[last])
    changed = dataclasses.replace(histories, items=items)
    assert (changed.items != histories.items).sum() > USERS / 2
    np.testing.assert_array_equal(
        fit(words, histories, split, neighbors), fit(words, changed, split, neighbors)
    )


def test_histories_end_with_a_rows_target(histories, split):
    rows = split.validation[::2]
    cut = up_to(histories, rows)
    positions = dict(rows.tolist())
    assert len(cut) == len(histories)
    for user in range(USERS):
        end = positions.get(user, len(histories.of(user)) - 1) + 1
        np.testing.assert_array_equal(cut.of(user), histories.of(user)[:end])
