"""Lines of progress: rate and time left, by a clock that the test moves."""

import types

import pytest

from mmsrec_jax.runtime import progress
from mmsrec_jax.runtime.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_the_first_update_which_compiles_does_not_count_in_the_time_left(clock, caplog):
    caplog.set_level("INFO", logger="absl")
    job = Progress("train", 100, start=10)
    clock.seconds += 60
    job.update()
    assert job.left is None
    clock.seconds += 8
    job.update(4)
    assert job.left == pytest.approx(85 * 2)
    clock.seconds += 170
    job.update(85)
    assert job.left == 0
    lines = [record.getMessage() for record in caplog.records]
    assert "11/100 steps" in lines[0] and "ETA unknown" in lines[0]
    assert "15/100 steps  0.5/s  ETA 2:50" in lines[1]
    assert f"100/100 steps  {90 / 238:.3g}/s  took 3:58" in lines[2]


def test_a_job_that_is_done_at_once_has_its_own_rate(clock):
    job = Progress("read", 6)
    clock.seconds += 2
    job.update(6)
    assert job.left == 0
