"""The table of a run, on the screen and on disk."""

import json

import numpy as np
import pytest

from mmsrec_jax.errors import UserError
from mmsrec_jax.evaluation import report
from mmsrec_jax.evaluation.metrics import Ranks


def ranks(values):
    n = len(values)
    return Ranks(np.arange(n), np.zeros(n), values, np.full(n, 21), np.zeros(n))


def test_rows_have_exactly_the_agreed_form(tmp_path):
    rows = report.rows_from_ranks(
        [("random", "full", 0, ranks([1, 3, 7, 20])), ("mmsrarec", "sampled@20", 1, ranks([1]))]
    )
    assert rows[0] == {
        "system": "random",
        "protocol": "full",
        "seed": 0,
        "users": 4,
        "hr@5": 0.5,
        "ndcg@5": pytest.approx((1 + 0.5) / 4),
        "mrr@5": pytest.approx((1 + 1 / 3) / 4),
        "auc": pytest.approx((20 + 18 + 14 + 1) / 20 / 4),
        "recall@10": 0.75,
        "ndcg@10": pytest.approx((1 + 0.5 + 1 / 3) / 4),
    }
    path = tmp_path / "run" / "table.json"
    report.write_table(path, rows)
    assert json.loads(path.read_text()) == rows
    assert [p.name for p in path.parent.iterdir()] == ["table.json"]
    lines = report.screen_table(rows).splitlines()
    assert lines[0].split() == list(report.COLUMNS)
    assert lines[3].split()[:5] == ["mmsrarec", "sampled@20", "1", "1", "1.0000"]


def test_nothing_to_average_is_an_error():
    with pytest.raises(UserError, match="system random: no user to evaluate"):
        report.row("random", "full", 0, ranks([]))
