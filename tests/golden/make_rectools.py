"""Writes rectools.json: metrics of RecTools on random scores with ties.

RecTools asks for numpy below 2 on Python 3.11 and 3.12, so it runs in an environment of its own:

    python -m venv rt && rt/bin/pip install RecTools==0.19.0
    rt/bin/python tests/golden/make_rectools.py
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from rectools import Columns
from rectools.metrics import (
    MRR,
    NDCG,
    AvgRecPopularity,
    CatalogCoverage,
    HitRate,
    MeanInvUserFreq,
    Recall,
)

USERS, ITEMS, CUTOFFS = 40, 60, (1, 5, 10, 20)


def table(orders):
    """Recommendations from item orders int[USERS, n], best first."""
    return pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(USERS), orders.shape[1]),
            Columns.Item: orders.ravel(),
            Columns.Rank: np.tile(np.arange(1, orders.shape[1] + 1), USERS),
        }
    )


def main():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, ITEMS, USERS)
    scores = rng.integers(0, 8, ITEMS) + rng.integers(0, 5, (USERS, ITEMS))
    scores[np.arange(USERS), targets] += rng.integers(0, 10, USERS)
    # The last item is in no training interaction; some users have an item twice.
    training = np.stack([rng.integers(0, USERS, 150), rng.zipf(1.6, 150) % (ITEMS - 1)], 1)
    is_target = np.arange(ITEMS)[None] == targets[:, None]
    against = table(np.lexsort((is_target, -scores), axis=1))  # ties count against the model
    by_index = table(np.argsort(-scores, axis=1, kind="stable"))
    truth = pd.DataFrame({Columns.User: np.arange(USERS), Columns.Item: targets})
    past = pd.DataFrame({Columns.User: training[:, 0], Columns.Item: training[:, 1]})
    found = {}
    for k in CUTOFFS:
        found |= {
            f"hr@{k}": HitRate(k=k).calc(against, truth),
            f"recall@{k}": Recall(k=k).calc(against, truth),
            f"mrr@{k}": MRR(k=k).calc(against, truth),
            f"ndcg@{k}": NDCG(k=k, divide_by_achievable=True).calc(against, truth),
            f"coverage@{k}": CatalogCoverage(k=k, normalize=True).calc(by_index, range(ITEMS)),
            f"popularity@{k}": AvgRecPopularity(k=k).calc(by_index, past),
            f"novelty@{k}": MeanInvUserFreq(k=k).calc(by_index, past),
        }
    golden = {
        "scores": scores.tolist(),
        "targets": targets.tolist(),
        "training": training.tolist(),
        "metrics": {name: float(value) for name, value in found.items()},
    }
    Path(__file__).with_name("rectools.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
