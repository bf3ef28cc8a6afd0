"""Accuracy metrics from stored ranks, row by row; one target a row.

A stored rank is the number of candidates scored at or above the target, the target included
(*ours*: a tie shall not help a model). Metrics read it in one of two ways:

- `PESSIMISTIC` (default): a tie counts against the model, and a constant scorer gets 0 at every
  cut-off below the number of candidates.
- `EXPECTED`: the mean over all orders of the tied candidates (McSherry & Najork 2008), so that a
  constant scorer gets exactly chance.

AUC counts a tie as half either way, the usual Mann-Whitney definition. With one target a row
Recall@k equals HR@k; both are given, each under its name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from mmsrec_jax.runtime.errors import UserError

CUTOFFS = (1, 5, 10, 20)
_NO_LISTS = np.zeros((0, 0), np.int32)
PESSIMISTIC, EXPECTED = "pessimistic", "expected"
_GAINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "hr": lambda rank: np.ones(len(rank)),
    "recall": lambda rank: np.ones(len(rank)),
    "ndcg": lambda rank: 1 / np.log2(rank + 1),  # the ideal DCG of one target is 1
    "mrr": lambda rank: 1 / rank,
}


@dataclass(frozen=True)
class Ranks:
    """Per-row outcome of a ranking; every field is int32[n], `top` int32[n, K].

    `users` and `targets` are indices into the histories and the catalog, `ranks` counts from 1,
    `candidates` is how many items competed (the target included), `ties` how many others scored
    exactly as the target. `top` holds the best items in order, of equal scores the lower index
    first, -1 where fewer were scored above -inf; K = 0 where no lists were kept.
    """

    users: np.ndarray
    targets: np.ndarray
    ranks: np.ndarray
    candidates: np.ndarray
    ties: np.ndarray
    top: np.ndarray = field(default_factory=lambda: _NO_LISTS)

    def __post_init__(self) -> None:
        for name in ("users", "targets", "ranks", "candidates", "ties"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.int32))
        top = np.zeros((len(self), 0)) if self.top is _NO_LISTS else self.top
        object.__setattr__(self, "top", np.asarray(top, np.int32))

    def __len__(self) -> int:
        return len(self.ranks)

    def select(self, rows: np.ndarray) -> "Ranks":
        """The outcome of these rows, int[m]."""
        return Ranks(*(getattr(self, column.name)[rows] for column in fields(self)))


def names(cutoffs: Sequence[int]) -> list[str]:
    """hr@k, recall@k, ndcg@k, mrr@k for every k, and auc."""
    return [f"{name}@{k}" for name in _GAINS for k in cutoffs] + ["auc"]


def per_row(ranks: Ranks, metric: str, *, ties: str = PESSIMISTIC) -> np.ndarray:
    """float64[n]: a metric of `names` for every row. `ties` is `PESSIMISTIC` or `EXPECTED`."""
    if metric == "auc":
        return _auc(ranks)
    name, _, k = metric.partition("@")
    tied = ranks.ties.astype(np.int64) if ties == EXPECTED else 0
    return _gain(name, int(k), ranks.ranks.astype(np.int64), tied)


def hit_rate(ranks: np.ndarray, k: int) -> float:
    """Share of rows whose target is within the first k; ranks int[n], ties against the model."""
    return float(_gain("hr", k, np.asarray(ranks, np.int64), 0).mean())


def ndcg(ranks: np.ndarray, k: int) -> float:
    """Mean of 1 / log2(rank + 1) within the first k; ranks int[n], ties against the model."""
    return float(_gain("ndcg", k, np.asarray(ranks, np.int64), 0).mean())


def summary(
    ranks: Ranks, cutoffs: Sequence[int] = CUTOFFS, *, ties: str = PESSIMISTIC
) -> dict[str, float]:
    """The mean over rows of every metric in `names`.

    Raises:
      UserError: a cut-off that no row has candidates for, see `check_cutoffs`; no rows.
    """
    if not len(ranks):
        raise UserError("no user to evaluate: the split left no test rows; choose another split")
    check_cutoffs(cutoffs, int(ranks.candidates.max()))
    return {name: float(per_row(ranks, name, ties=ties).mean()) for name in names(cutoffs)}


def check_cutoffs(cutoffs: Sequence[int], candidates: int) -> None:
    """Refuses cut-offs that are no counts, or more than the `candidates` there are to list.

    A row whose own candidates are fewer than k (a long history) has them all in its list.
    """
    if not cutoffs or min(cutoffs) < 1:
        raise UserError(f"k={_joined(cutoffs)}: cut-offs are counts from 1 on; give one or more")
    if max(cutoffs) > candidates:
        raise UserError(
            f"k={max(cutoffs)} is more than the {candidates} items that compete; choose a smaller k"
        )


def _gain(name: str, k: int, ranks: np.ndarray, ties: np.ndarray | int) -> np.ndarray:
    """Mean gain over the positions ranks - ties .. ranks, all equally likely for the target."""
    total = np.concatenate([[0.0], np.cumsum(_GAINS[name](np.arange(1, k + 1)))])
    return (total[np.minimum(ranks, k)] - total[np.minimum(ranks - ties - 1, k)]) / (ties + 1)


def _auc(ranks: Ranks) -> np.ndarray:
    """Share of negatives scored below the target, ties counting half; .5 without a negative."""
    negatives = ranks.candidates.astype(np.int64) - 1
    below = negatives + 1 - ranks.ranks + 0.5 * ranks.ties
    return np.where(negatives > 0, below / np.maximum(negatives, 1), 0.5)


def _joined(values: Sequence[int]) -> str:
    return ",".join(map(str, values))
