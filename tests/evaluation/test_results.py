"""Ranks on disk: found again, refused when of something else, recognized across seeds."""

import numpy as np
import pytest

from mmsrec_jax.evaluation import results
from mmsrec_jax.evaluation.metrics import Ranks
from mmsrec_jax.evaluation.results import Results
from mmsrec_jax.runtime.errors import UserError

CONFIG = {"seed": 0, "sft": {"seed": 0, "steps": 5}, "k": (1, 5)}


def ranks(n=3):
    return Ranks(np.arange(n), np.zeros(n), np.ones(n), np.full(n, 9), np.zeros(n))


def never():
    raise AssertionError("ranked again")


def test_ranks_are_found_once_and_kept(tmp_path):
    folder = Results(tmp_path, data="d", split="leave_one_out", seed=3, config=CONFIG)
    folder.add("sasrec", "full", "c", ranks)
    again = folder.add("sasrec", "full", "c", never)
    np.testing.assert_array_equal(again.ranks, ranks().ranks)
    (found,) = results.read_all(tmp_path)
    assert (found.system, found.seed) == ("sasrec", 3)
    assert found.setting == results.Setting("d", "leave_one_out", "full", "c")
    assert found.config == results.config_digest(CONFIG)


@pytest.mark.parametrize(
    ("changes", "candidates", "message"),
    [({}, "x", "of other candidates"), ({"data": "x"}, "c", "of other data"),
     ({"data": "x", "split": "global_time"}, "x", "of other data, split, candidates")],
)  # fmt: skip
def test_ranks_of_something_else_are_refused(tmp_path, changes, candidates, message):
    same = {"data": "d", "split": "leave_one_out", "seed": 0, "config": CONFIG}
    Results(tmp_path, **same).add("sasrec", "full", "c", ranks)
    with pytest.raises(UserError, match=message):
        Results(tmp_path, **same | changes).add("sasrec", "full", candidates, never)


def test_digest_sees_all_but_seeds():
    seeds = {"seed": 7, "sft": {"seed": 1, "steps": 5}, "k": (1, 5)}
    steps = {"seed": 0, "sft": {"seed": 0, "steps": 6}, "k": (1, 5)}
    assert results.config_digest(seeds) == results.config_digest(CONFIG)
    assert results.config_digest(steps) != results.config_digest(CONFIG)


def test_an_empty_folder_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="no ranks-.*run the step evaluation first"):
        results.read_all(tmp_path)
