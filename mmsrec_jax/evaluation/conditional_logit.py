"""Conditional logit (McFadden 1974): which item of a list was chosen, by weighted features.

p(c | list) = exp(w . x_c) / sum over the list of exp(w . x). The log-likelihood is concave, so
the weights do not depend on where the fit starts.
"""

import numpy as np
from scipy.optimize import minimize


def fit(
    features: np.ndarray,
    chosen: np.ndarray,
    *,
    present: np.ndarray | None = None,
    prior: np.ndarray | None = None,
    ridge: float = 1.0,
) -> np.ndarray:
    """Weights float64[P] that minimize -log p(chosen) + ridge / 2 * |weights - prior|^2.

    Args:
      features: float[R, C, P] of R lists of C items.
      chosen: int[R], the place of the chosen item in its list.
      present: bool[R, C]; False where a list has no item. None: lists are full.
      prior: float[P]; None is zero.
    """
    rows, _, width = features.shape
    x = np.asarray(features, np.float64)
    closed = np.zeros(x.shape[:2]) if present is None else np.where(present, 0.0, -np.inf)
    start = np.zeros(width) if prior is None else np.asarray(prior, np.float64)
    own = x[np.arange(rows), chosen]

    def shares(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """-log p(chosen) float64[R] and p float64[R, C]."""
        logits = x @ weights + closed
        top = logits.max(axis=1, keepdims=True)
        odds = np.exp(logits - top)
        total = odds.sum(axis=1, keepdims=True)
        return (top + np.log(total))[:, 0] - own @ weights, odds / total

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        nll, p = shares(weights)
        away = weights - start
        gradient = np.einsum("rc,rcp->p", p, x) - own.sum(axis=0) + ridge * away
        return float(nll.sum() + ridge / 2 * away @ away), gradient

    def curvature(weights: np.ndarray) -> np.ndarray:
        _, p = shares(weights)
        centered = x - np.einsum("rc,rcp->rp", p, x)[:, None]
        scaled = (np.sqrt(p)[..., None] * centered).reshape(-1, width)
        return scaled.T @ scaled + ridge * np.eye(width)

    if not rows or not width:
        return start
    return minimize(loss, start, jac=True, hess=curvature, method="trust-exact").x
