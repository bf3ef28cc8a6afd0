"""Metrics of the lists against loops and RecTools."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmsrec_jax.data import splits
from mmsrec_jax.data.records import Histories
from mmsrec_jax.evaluation import beyond_accuracy
from mmsrec_jax.evaluation.beyond_accuracy import Training

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rectools.json").read_text())
ITEMS = 12


@pytest.fixture(scope="module")
def histories():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 30)  # users with one interaction among them
    assert lengths.min() == 1
    owner = np.repeat(np.arange(30), lengths)
    items = rng.zipf(1.5, len(owner)) % (ITEMS - 1)  # the last item never occurs
    return Histories.from_rows(np.arange(30).astype(str), owner, items, np.arange(len(owner)))


@pytest.fixture(scope="module")
def training(histories):
    return Training.of(histories, splits.leave_one_out(histories), ITEMS)


@pytest.fixture(scope="module")
def top():
    rng = np.random.default_rng(1)
    lists = np.stack([rng.permutation(ITEMS)[:6] for _ in range(15)])
    lists[3, 4:], lists[5] = -1, -1  # a short list and an empty one
    return lists


def test_training_counts_equal_a_loop(histories, training):
    interactions, users, anyone = Counter(), Counter(), set()
    for user in range(30):
        past = histories.of(user)
        past = past[:-2] if len(past) >= 3 else past
        interactions.update(past.tolist())
        users.update(set(past.tolist()))
        anyone |= {user} if len(past) else set()
    assert training.interactions.tolist() == [interactions[i] for i in range(ITEMS)]
    assert training.users.tolist() == [users[i] for i in range(ITEMS)]
    assert training.num_users == len(anyone)
    assert (training.users < training.interactions).any() and training.users[-1] == 0


@pytest.mark.parametrize("k", [1, 3, 6])
def test_metrics_equal_loops(top, training, k):
    listed = [[i for i in row[:k].tolist() if i >= 0] for row in top]
    counts = Counter(i for row in listed for i in row)
    assert beyond_accuracy.coverage(top, k, training) == len(counts) / ITEMS
    every = [counts[i] for i in range(ITEMS)]
    apart = sum(abs(a - b) for a in every for b in every)  # half the relative mean difference
    gini = apart / (2 * ITEMS * sum(every))
    assert math.isclose(beyond_accuracy.gini(top, k, training), gini)

    def bits(i):
        return -math.log2(max(training.users[i], 1) / training.num_users)

    for found, value in (
        (beyond_accuracy.popularity(top, k, training), lambda i: training.interactions[i]),
        (beyond_accuracy.novelty(top, k, training), bits),
    ):
        wanted = [np.mean([value(i) for i in row]) if row else 0 for row in listed]
        np.testing.assert_allclose(found, wanted)


def test_gini_of_equal_and_of_single_items(training):
    equal = np.arange(ITEMS)[:, None]
    assert beyond_accuracy.gini(equal, 1, training) == 0
    assert math.isclose(beyond_accuracy.gini(0 * equal, 1, training), 1 - 1 / ITEMS)


def test_metrics_equal_rectools():
    scores, past = np.array(GOLDEN["scores"]), np.array(GOLDEN["training"])
    num_items = scores.shape[1]
    pairs = np.unique(past, axis=0)
    training = Training(
        np.bincount(past[:, 1], minlength=num_items),
        np.bincount(pairs[:, 1], minlength=num_items),
        len(np.unique(past[:, 0])),
    )
    assert training.users[-1] == 0 and len(pairs) < len(past)
    top = np.argsort(-scores, axis=1, kind="stable")[:, :20]
    assert (top == num_items - 1).any()
    for k in (1, 5, 10, 20):
        for name in ("coverage", "popularity", "novelty"):
            found = np.mean(getattr(beyond_accuracy, name)(top, k, training))
            assert math.isclose(found, GOLDEN["metrics"][f"{name}@{k}"], rel_tol=1e-12), (name, k)
