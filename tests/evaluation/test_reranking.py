"""Reranked lists against a loop that builds every order and looks where the target stands."""

import numpy as np
import pytest
from table_system import ITEMS

from mmsrec_jax.evaluation import ranking, reranking
from mmsrec_jax.runtime.errors import UserError


@pytest.fixture(scope="module")
def margins(rows):
    """float32[rows, items], small integers so that ties abound."""
    return np.random.default_rng(2).integers(0, 6, (len(rows), ITEMS)).astype(np.float32)


def reranked(table, histories, rows, margins, depth, top=4):
    first = ranking.full(table, histories, rows, top=max(depth, top))
    listed = first.top[:, :depth]
    scores = np.take_along_axis(margins, np.maximum(listed, 0), axis=1)
    scores[listed < 0] = np.nan  # as the MLLM leaves it
    return first, reranking.rerank("x", first, scores, top=top)


def by_hand(table, margin, past, target, depth):
    """The order with every tie broken against the target, and the target's rank in it."""
    scores = table.values[past[-1]]
    competing = sorted((set(range(ITEMS)) - set(past.tolist())) | {target})
    order = sorted(competing, key=lambda i: (-scores[i], i == target))
    head = sorted(order[:depth], key=lambda i: (-margin[i], i == target))
    return 1 + (head + order[depth:]).index(target)


@pytest.mark.parametrize("depth", [1, 2, 7, 25, ITEMS])
def test_ranks_equal_a_loop(histories, rows, table, margins, depth):
    first, got = reranked(table, histories, rows, margins, depth)
    moved = 0
    for n, (user, position) in enumerate(rows):
        past, target = histories.of(user)[:position], int(histories.of(user)[position])
        assert got.ranks[n] == by_hand(table, margins[n], past, target, depth)
        moved += got.ranks[n] != first.ranks[n]
    assert moved > 0 or depth < 3
    for name in ("users", "targets", "candidates"):
        np.testing.assert_array_equal(getattr(got, name), getattr(first, name))
    assert (got.ties < got.ranks).all()


def test_one_item_leaves_the_other_systems_ranks(histories, rows, table, margins):
    first, got = reranked(table, histories, rows, margins, 1)
    for name in ("ranks", "ties"):
        np.testing.assert_array_equal(getattr(got, name), getattr(first, name))
    np.testing.assert_array_equal(got.top, first.top[:, :4])


def test_the_whole_catalog_leaves_the_scorers_own_ranks(
    histories, rows, table, margins
):  # fmt: skip
    _, got = reranked(table, histories, rows, margins, ITEMS, top=ITEMS)
    wanted = ranking.full_from_scores("x", margins, histories, rows, top=ITEMS)
    for name in ("ranks", "ties", "candidates"):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))
    listed = np.take_along_axis(margins, np.maximum(got.top, 0), axis=1)
    for n in range(len(rows)):
        count = got.candidates[n]
        assert (np.diff(listed[n, :count]) <= 0).all() and (got.top[n, count:] == -1).all()
        assert set(got.top[n].tolist()) == set(wanted.top[n].tolist())


def test_lists_begin_with_the_reordered_items(histories, rows, table, margins):
    first, got = reranked(table, histories, rows, margins, 5, top=8)
    for n in range(len(rows)):
        head = sorted(first.top[n, :5].tolist(), key=lambda i, n=n: -margins[n, i])
        assert got.top[n].tolist() == head + first.top[n, 5:].tolist()


def test_a_broken_score_names_the_system(histories, rows, table, margins):
    broken = margins.copy()
    broken[3] = np.nan
    with pytest.raises(UserError, match="system x: a score is NaN"):
        reranked(table, histories, rows, broken, 3)


def test_scores_of_given_items_equal_a_loop(histories, rows, table):
    items = np.random.default_rng(3).integers(-1, ITEMS, (len(rows), 6))
    got = reranking.scores_of(table, histories, rows, items, chunk=32)
    for n, (user, position) in enumerate(rows):
        scores = table.values[histories.of(user)[position - 1]]
        known = items[n] >= 0
        np.testing.assert_array_equal(got[n, known], scores[items[n, known]])


def test_the_fusion_weighs_what_helps(histories, rows, table):
    """Targets stand where margin + 2 score and some noise put them."""
    first = ranking.full(table, histories, rows, top=10)
    inside = first.select(np.flatnonzero(first.ranks <= 10))
    assert 20 < len(inside) < len(rows)
    rng = np.random.default_rng(5)
    margins, scores = rng.normal(size=(2, len(first), 10))
    helpful = margins + 2 * scores + rng.gumbel(size=margins.shape)
    targets = first.top[np.arange(len(first)), helpful.argmax(axis=1)]
    planted = ranking.Ranks(
        first.users, targets, np.where(np.arange(len(first)) % 3, 1, 11), first.candidates,
        first.ties, first.top,
    )  # fmt: skip
    weights = reranking.fit_fusion(margins, scores, planted)
    np.testing.assert_allclose(weights, [1, 2], atol=0.5)
    margins[::3] = scores[::3] = np.nan  # lists without their target are not read
    np.testing.assert_array_equal(reranking.fit_fusion(margins, scores, planted), weights)
    none = planted.select(np.flatnonzero(planted.ranks > 10))
    np.testing.assert_array_equal(reranking.fit_fusion(margins[::3], scores[::3], none), [1.0, 0.0])
