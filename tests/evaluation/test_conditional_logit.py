"""The conditional logit against scikit-learn's logistic regression and a loop over lists."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from mmsrec_jax.evaluation import conditional_logit


def lists(rows, width, features, weights, seed=0):
    """Lists whose items are chosen with the odds that `weights` give."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, width, features))
    noise = rng.gumbel(size=(rows, width))
    return x, np.argmax(x @ weights + noise, axis=1)


def test_pairs_are_logistic_regression_on_differences():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, chosen = lists(300, 2, 4, np.array([1.0, -0.5, 0.0, 2.0]))
    first_chosen = chosen == 0
    assert 50 < first_chosen.sum() < 250
    for ridge in (0.1, 5.0):
        model = linear_model.LogisticRegression(C=1 / ridge, fit_intercept=False, tol=1e-10)
        model.fit(x[:, 0] - x[:, 1], first_chosen)
        got = conditional_logit.fit(x, chosen, ridge=ridge)
        np.testing.assert_allclose(got, model.coef_[0], atol=1e-5)


def by_hand(weights, x, chosen, present, prior, ridge):
    loss = ridge / 2 * sum((w - p) ** 2 for w, p in zip(weights, prior, strict=True))
    for items, own, there in zip(x, chosen, present, strict=True):
        odds = [math.exp(item @ weights) for item, here in zip(items, there, strict=True) if here]
        loss -= math.log(math.exp(items[own] @ weights) / sum(odds))
    return loss


def test_longer_lists_with_gaps_equal_a_numeric_optimum():
    x, chosen = lists(40, 5, 2, np.array([1.0, -1.0]))
    present = np.random.default_rng(1).random((40, 5)) < 0.7
    present[np.arange(40), chosen] = True
    x[~present] = 1e3  # would rule the sum if it were counted
    prior = np.array([1.0, 0.5])
    arguments = (x, chosen, present, prior, 2.0)
    wanted = minimize(by_hand, [0, 0], arguments, method="Nelder-Mead", options={"xatol": 1e-7})
    got = conditional_logit.fit(x, chosen, present=present, prior=prior, ridge=2.0)
    np.testing.assert_allclose(got, wanted.x, atol=1e-4)


def test_it_finds_the_weights_that_made_the_choices():
    weights = np.array([2.0, -1.0, 0.0])
    got = conditional_logit.fit(*lists(20_000, 6, 3, weights))
    np.testing.assert_allclose(got, weights, atol=0.06)  # four standard errors, .015 each


def test_where_nothing_speaks_the_prior_does():
    prior = np.array([1.0, 0.0])
    got = conditional_logit.fit(np.zeros((0, 3, 2)), np.zeros(0, int), prior=prior)
    np.testing.assert_array_equal(got, prior)
    same = np.ones((10, 3, 2))  # all items of a list are alike
    np.testing.assert_allclose(
        conditional_logit.fit(same, np.zeros(10, int), prior=prior), prior, atol=1e-8
    )
    separable = np.zeros((10, 3, 1))
    separable[:, 0] = 1  # no finite optimum without the ridge
    assert 0 < conditional_logit.fit(separable, np.zeros(10, int))[0] < 10
