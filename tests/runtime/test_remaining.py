"""What a run says it has left: times that something tells, names of steps without any."""

import time

import jax
import pytest

from mmsrec_jax.runtime import compiling
from mmsrec_jax.runtime.progress import Progress
from mmsrec_jax.runtime.remaining import Timed, WholeRun

STEPS = {
    "data": {"data": {"source": "toyshop"}},
    "plain": {"model": {}, "sft": {"steps": 50, "rate": 1, "seed": 0}},
    "sft": {"model": {}, "sft": {"steps": 150, "rate": 1, "seed": 0}},
    "other": {"model": {}, "sft": {"steps": 150, "rate": 2, "seed": 0}},
    "retrieval": {"sft": {"steps": 150, "rate": 1, "seed": 0}, "retrieval": {}},
}


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def made(*known, to_run=tuple(STEPS)):
    clock = Clock()
    return WholeRun(STEPS, to_run, known, clock), clock


def shown(name, total, done, left, unit="steps"):
    progress = Progress(name, total, unit=unit)
    progress.done, progress.left = done, left
    return progress


def test_without_records_there_is_no_time():
    run, _ = made()
    run.begin("data", resumed=False)
    assert run.line() == "run: step 1 of 5 (data), 4 to run after it"


def test_records_of_a_step_are_scaled_by_its_training_steps_and_elapse():
    known = [Timed("sft", {**STEPS["sft"], "sft": {"steps": 300}}, 600.0), Timed("data", {}, 40.0)]
    run, clock = made(*known, to_run=["data", "sft"])
    run.begin("data", resumed=False)
    assert run.line() == "run: step 1 of 5 (data), about 5:40 left"
    clock.seconds = 30.0
    assert run.line() == "run: step 1 of 5 (data), about 5:10 left"
    clock.seconds = 45.0  # longer than before
    assert run.line() == "run: step 1 of 5 (data), about 5:00 left and the time of data"


def test_a_finished_step_tells_of_those_of_its_kind_alone():
    run, clock = made(to_run=list(STEPS)[1:])
    run.begin("plain", resumed=False)
    clock.seconds = 20.0
    run.end("plain")
    run.begin("sft", resumed=False)
    unknown = "and the time of other, retrieval"
    assert run.line() == f"run: step 3 of 5 (sft), about 1:00 left {unknown}"
    resumed, clock = made(to_run=list(STEPS)[1:])
    resumed.begin("plain", resumed=True)  # its seconds are not those of all its steps
    clock.seconds = 20.0
    resumed.end("plain")
    resumed.begin("sft", resumed=False)
    assert resumed.line() == "run: step 3 of 5 (sft), 2 to run after it"


def test_the_rate_of_the_step_counts_and_no_other(caplog):
    caplog.set_level("INFO")
    run, clock = made(Timed("sft", STEPS["sft"], 100.0), to_run=["sft"])
    run.begin("sft", resumed=False)
    run.progressed(shown("grpo", 150, 10, 700.0))  # counts the training steps of this one
    assert run.line() == "run: step 3 of 5 (sft), about 11:40 left"
    clock.seconds = 30.0
    run.progressed(shown("score", 90, 10, 5.0, unit="lists"))  # a part of it
    assert run.line() == "run: step 3 of 5 (sft), about 11:10 left"
    assert sum("run: step" in r.getMessage() for r in caplog.records) == 1
    clock.seconds = 61.0
    run.progressed(shown("sft", 10, 9, 4.0, unit="texts"))
    assert caplog.records[-1].getMessage() == "run: step 3 of 5 (sft), about 0:04 left"


@pytest.mark.parametrize("long", [0.0, 60.0])
def test_a_long_compilation_is_told_once_of_every_program(long, caplog, monkeypatch):
    caplog.set_level("INFO")
    events = compiling.Compilations(long)
    jax.monitoring.register_event_duration_secs_listener(events)
    try:
        once = time.time()  # no program of it was stored

        @jax.jit
        def slow_step(x):
            for _ in range(100):
                x = jax.numpy.sin(x) @ x
            return x * once

        for _ in range(2):
            slow_step(jax.numpy.ones((3, 3)))
    finally:
        jax.monitoring.unregister_event_duration_listener(events)
    said = [r.getMessage() for r in caplog.records if "slow_step" in r.getMessage()]
    if long:
        assert said == []
    else:
        assert said[0] == "compiling slow_step" and said[1].startswith("compiled slow_step (0:")
        assert len(said) == 2
