"""Metrics from ranks against plain Python over the scores themselves."""

import math

import numpy as np

from mmsrec_jax.evaluation import metrics
from mmsrec_jax.evaluation.metrics import Ranks


def pessimistic_order(scores, target):
    """Candidates best first; on equal scores the target comes last."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i == target))


def by_hand(scores, target, k):
    top = pessimistic_order(scores, target)[:k]
    gain = [float(item == target) for item in top]
    dcg = sum(g / math.log2(place + 2) for place, g in enumerate(gain))
    reciprocal = next((1 / (place + 1) for place, g in enumerate(gain) if g), 0.0)
    return sum(gain), dcg, reciprocal


def pairs_won(scores, target):
    others = [s for i, s in enumerate(scores) if i != target]
    return sum((scores[target] > s) + 0.5 * (scores[target] == s) for s in others) / len(others)


def ranks_of(scores, targets):
    own = scores[np.arange(len(scores)), targets][:, None]
    n = len(scores)
    return Ranks(
        np.arange(n),
        targets,
        (scores >= own).sum(1),
        np.full(n, scores.shape[1]),
        (scores == own).sum(1) - 1,
    )


def test_every_metric_equals_plain_python_with_ties():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (300, 21)).astype(float)
    targets = rng.integers(0, 21, 300)
    got = metrics.summary(ranks_of(scores, targets))
    five = np.mean([by_hand(s, t, 5) for s, t in zip(scores.tolist(), targets, strict=True)], 0)
    ten = np.mean([by_hand(s, t, 10) for s, t in zip(scores.tolist(), targets, strict=True)], 0)
    won = np.mean([pairs_won(s, t) for s, t in zip(scores.tolist(), targets, strict=True)])
    wanted = dict(
        zip(("hr@5", "ndcg@5", "mrr@5", "recall@10", "ndcg@10"), [*five, *ten[:2]], strict=True)
    )
    assert 0.05 < wanted["hr@5"] < 0.4
    for name, value in {**wanted, "auc": won}.items():
        assert math.isclose(got[name], value, abs_tol=1e-12), name


def test_constant_scorer_hits_nothing_and_has_auc_one_half():
    got = metrics.summary(ranks_of(np.zeros((50, 21)), np.arange(50) % 21))
    assert got.pop("auc") == 0.5
    assert set(got.values()) == {0.0}


def test_perfect_scorer_has_one_everywhere():
    targets = np.arange(40) % 21
    got = metrics.summary(ranks_of(np.eye(21)[targets], targets))
    assert set(got.values()) == {1.0}
