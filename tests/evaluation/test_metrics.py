"""Accuracy metrics against plain Python over the scores, scikit-learn and RecTools."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics

from mmsrec_jax.evaluation import metrics, ranking
from mmsrec_jax.evaluation.metrics import EXPECTED, Ranks
from mmsrec_jax.evaluation.protocols import Candidates
from mmsrec_jax.runtime.errors import UserError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rectools.json").read_text())


def by_hand(order, target, k):
    """HR, Recall, NDCG, MRR of an order of candidates, best first."""
    gain = [float(item == target) for item in order[:k]]
    dcg = sum(g / math.log2(place + 2) for place, g in enumerate(gain))
    reciprocal = next((1 / (place + 1) for place, g in enumerate(gain) if g), 0.0)
    return {"hr": sum(gain), "recall": sum(gain), "ndcg": dcg, "mrr": reciprocal}


def pairs_won(scores, target):
    others = [s for i, s in enumerate(scores) if i != target]
    return sum((scores[target] > s) + 0.5 * (scores[target] == s) for s in others) / len(others)


def ranks_of(scores, targets):
    """Through the code under use: candidates are the columns in order."""
    n, width = scores.shape
    rows = np.stack([np.arange(n), np.ones(n, int)], 1).astype(np.int32)
    items = np.broadcast_to(np.arange(width, dtype=np.int32), scores.shape)
    return ranking.from_scores("x", scores, Candidates(rows, items, np.asarray(targets), 0))


@pytest.fixture(scope="module")
def random():
    rng = np.random.default_rng(0)
    scores, targets = rng.integers(0, 6, (200, 21)).astype(float), rng.integers(0, 21, 200)
    scores[np.arange(100), targets[:100]] += 3  # half of the targets are likely found
    return scores, targets


def test_pessimistic_metrics_equal_plain_python(random):
    scores, targets = random
    got = ranks_of(scores, targets)
    for k in metrics.CUTOFFS:
        wanted = [
            by_hand(sorted(range(21), key=lambda i: (-s[i], i == t)), t, k)  # noqa: B023
            for s, t in zip(scores.tolist(), targets, strict=True)
        ]
        for name in ("hr", "recall", "ndcg", "mrr"):
            found = metrics.per_row(got, f"{name}@{k}")
            np.testing.assert_allclose(found, [w[name] for w in wanted], atol=1e-12)
            assert k == 1 or 0 < found.mean() < 1
    won = [pairs_won(s, t) for s, t in zip(scores.tolist(), targets, strict=True)]
    np.testing.assert_allclose(metrics.per_row(got, "auc"), won, atol=1e-12)


def test_expected_metrics_are_the_mean_over_every_order_of_the_ties():
    rng = np.random.default_rng(1)
    scores, targets = rng.integers(0, 3, (25, 6)).astype(float), rng.integers(0, 6, 25)
    got = ranks_of(scores, targets)
    assert set(got.ties) >= {0, 1, 2, 3}
    for k in (1, 2, 4, 6):
        for n, (s, t) in enumerate(zip(scores.tolist(), targets, strict=True)):
            orders = [
                order
                for order in itertools.permutations(range(6))
                if all(s[a] >= s[b] for a, b in itertools.pairwise(order))
            ]
            every = [by_hand(order, t, k) for order in orders]
            for name in ("hr", "recall", "ndcg", "mrr"):
                wanted = np.mean([one[name] for one in every])
                found = metrics.per_row(got, f"{name}@{k}", ties=EXPECTED)[n]
                assert math.isclose(found, wanted, abs_tol=1e-12)


def test_metrics_equal_scikit_learns(random):
    scores, targets = random
    truth = np.eye(21)[targets]
    got, expected = (metrics.summary(ranks_of(scores, targets), ties=t) for t in (
        metrics.PESSIMISTIC, EXPECTED,
    ))  # fmt: skip
    for k in metrics.CUTOFFS:  # scikit-learn averages DCG over the orders of ties
        wanted = sklearn.metrics.ndcg_score(truth, scores, k=k)
        assert math.isclose(expected[f"ndcg@{k}"], wanted, abs_tol=1e-12)
        assert got[f"ndcg@{k}"] < wanted
    auc = np.mean([sklearn.metrics.roc_auc_score(t, s) for t, s in zip(truth, scores, strict=True)])
    assert math.isclose(got["auc"], auc, abs_tol=1e-12)
    # The average precision of one positive is its reciprocal rank, of ties the worst.
    lrap = sklearn.metrics.label_ranking_average_precision_score(truth, scores)
    whole = metrics.per_row(ranks_of(scores, targets), "mrr@21").mean()
    assert math.isclose(whole, lrap, abs_tol=1e-12)


def test_metrics_equal_rectools():
    scores, targets = np.array(GOLDEN["scores"], float), np.array(GOLDEN["targets"])
    got = metrics.summary(ranks_of(scores, targets))
    for name, value in got.items():
        if name != "auc":
            assert math.isclose(value, GOLDEN["metrics"][name], abs_tol=1e-12), name
    assert 0 < got["hr@1"] < got["hr@20"] < 1


def test_constant_scorer_has_nothing_or_exactly_chance():
    got = ranks_of(np.zeros((50, 21)), np.arange(50) % 21)
    against = metrics.summary(got)
    assert against.pop("auc") == 0.5
    assert set(against.values()) == {0.0}
    chance = metrics.summary(got, ties=EXPECTED)
    assert chance.pop("auc") == 0.5
    for k in metrics.CUTOFFS:
        places = range(1, k + 1)
        assert math.isclose(chance[f"hr@{k}"], k / 21)
        assert math.isclose(chance[f"mrr@{k}"], sum(1 / r for r in places) / 21)
        assert math.isclose(chance[f"ndcg@{k}"], sum(1 / math.log2(r + 1) for r in places) / 21)


def test_perfect_scorer_has_one_everywhere():
    targets = np.arange(40) % 21
    for ties in (metrics.PESSIMISTIC, EXPECTED):
        got = metrics.summary(ranks_of(np.eye(21)[targets], targets), ties=ties)
        assert np.allclose(list(got.values()), 1)


def test_the_position_of_the_target_among_the_candidates_does_not_matter(random):
    scores, targets = random
    got = ranks_of(scores, targets)
    rng = np.random.default_rng(2)
    for _ in range(5):
        order = np.argsort(rng.random(scores.shape), axis=1)
        moved = np.take_along_axis(scores, order, 1)
        again = ranks_of(moved, (order == targets[:, None]).argmax(1))
        for ties in (metrics.PESSIMISTIC, EXPECTED):
            assert metrics.summary(got, ties=ties) == metrics.summary(again, ties=ties)


def test_the_two_means_over_bare_ranks():
    ranks = np.array([1, 3, 10, 11], np.int32)
    assert metrics.hit_rate(ranks, 10) == 0.75
    wanted = (1 + 1 / 2 + 1 / math.log2(11)) / 4
    assert math.isclose(metrics.ndcg(ranks, 10), wanted, abs_tol=1e-12)


def test_cutoffs_beyond_what_competes_and_empty_rows_are_refused():
    got = ranks_of(np.zeros((3, 8)), [0, 1, 2])
    with pytest.raises(UserError, match="k=10 is more than the 8 items that compete"):
        metrics.summary(got, (5, 10))
    for cutoffs in ((0, 5), ()):
        with pytest.raises(UserError, match="cut-offs are counts from 1 on"):
            metrics.summary(got, cutoffs)
    with pytest.raises(UserError, match="no user to evaluate"):
        metrics.summary(Ranks(*np.zeros((5, 0))))


def test_a_row_with_fewer_candidates_than_k_has_them_all_listed():
    got = Ranks([0, 1], [0, 0], [4, 4], [30, 4], [0, 0])
    assert metrics.per_row(got, "hr@20").tolist() == [1, 1]
    assert metrics.per_row(got, "auc")[1] == 0
