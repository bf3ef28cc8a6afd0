"""Ranking metrics from stored ranks: one positive per row, so Recall@k equals HR@k.

A rank is the number of candidates scored at or above the target, the target included (*ours*, after
Krichene & Rendle's warning about ties): a tie counts against the model, and a constant scorer gets
0 at every cut-off below the number of candidates. AUC alone counts a tie as half, the usual
Mann-Whitney definition, so that a constant scorer gets its floor of .5 there.
"""

from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Ranks:
    """Per-row outcome of a ranking; every field is int32[n].

    `users` and `targets` are indices into the histories and the catalogue, `ranks` counts from 1,
    `candidates` is how many items competed (the target included), `ties` how many others scored
    exactly as the target.
    """

    users: np.ndarray
    targets: np.ndarray
    ranks: np.ndarray
    candidates: np.ndarray
    ties: np.ndarray

    def __post_init__(self):
        for field in fields(self):
            object.__setattr__(self, field.name, np.asarray(getattr(self, field.name), np.int32))

    def __len__(self) -> int:
        return len(self.ranks)


def hit_rate(ranks: np.ndarray, k: int) -> float:
    """Share of rows whose target is among the first k; ranks int[n]."""
    return float(np.mean(ranks <= k))


def ndcg(ranks: np.ndarray, k: int) -> float:
    """Mean of 1 / log2(rank + 1) within the first k (the ideal DCG of one positive is 1)."""
    return float(np.mean(np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0)))


def mrr(ranks: np.ndarray, k: int) -> float:
    """Mean reciprocal rank, 0 beyond the first k."""
    return float(np.mean(np.where(ranks <= k, 1.0 / ranks, 0.0)))


def auc(ranks: np.ndarray, candidates: np.ndarray, ties: np.ndarray) -> float:
    """Mean over rows of the share of negatives scored below the target, ties counting half.

    Averaged per row, not pooled over users. Rows without a negative count .5.
    """
    negatives = candidates - 1
    below = candidates - ranks + 0.5 * ties
    return float(np.mean(np.where(negatives > 0, below / np.maximum(negatives, 1), 0.5)))


def summary(ranks: Ranks) -> dict[str, float]:
    """The metrics of a table row: hr@5, ndcg@5, mrr@5, auc, recall@10, ndcg@10."""
    values = ranks.ranks.astype(np.int64)
    return {
        "hr@5": hit_rate(values, 5),
        "ndcg@5": ndcg(values, 5),
        "mrr@5": mrr(values, 5),
        "auc": auc(values, ranks.candidates.astype(np.int64), ranks.ties),
        "recall@10": hit_rate(values, 10),
        "ndcg@10": ndcg(values, 10),
    }
