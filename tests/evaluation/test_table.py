"""The table of a run, on the screen and on disk."""

import json

import numpy as np
import pytest

from mmsrec_jax.evaluation import report
from mmsrec_jax.evaluation.metrics import Ranks
from mmsrec_jax.runtime.errors import UserError


def ranks(values):
    n = len(values)
    return Ranks(np.arange(n), np.zeros(n), values, np.full(n, 21), np.zeros(n))


def test_rows_have_exactly_the_agreed_form(tmp_path):
    found = [("random", "full", 0, ranks([1, 3, 7, 20])), ("mmsrarec", "sampled@20", 1, ranks([1]))]
    rows = report.rows_from_ranks(found, (1, 10))
    assert rows[0] == {
        "system": "random",
        "protocol": "full",
        "seed": 0,
        "users": 4,
        "hr@1": 0.25,
        "hr@10": 0.75,
        "recall@1": 0.25,
        "recall@10": 0.75,
        "ndcg@1": 0.25,
        "ndcg@10": pytest.approx((1 + 0.5 + 1 / 3) / 4),
        "mrr@1": 0.25,
        "mrr@10": pytest.approx((1 + 1 / 3 + 1 / 7) / 4),
        "auc": pytest.approx((20 + 18 + 14 + 1) / 20 / 4),
    }
    path = tmp_path / "run" / "table.json"
    report.write_table(path, rows)
    assert json.loads(path.read_text()) == rows
    assert [p.name for p in path.parent.iterdir()] == ["table.json"]
    lines = report.screen_table(rows).splitlines()
    shown = ["hr@1", "hr@10", "ndcg@10", "mrr@10", "auc"]  # the others repeat one of these
    assert lines[0].split() == [*report.HEAD, *shown]
    assert lines[3].split()[:5] == ["mmsrarec", "sampled@20", "1", "1", "1.0000"]


def test_nothing_to_average_is_an_error():
    with pytest.raises(UserError, match="system random, full: no user to evaluate"):
        report.row("random", "full", 0, ranks([]))
    with pytest.raises(UserError, match="system random, full: k=30 is more than the 21 items"):
        report.row("random", "full", 0, ranks([1]), (30,))
