"""Steps: skipped when finished, resumed when killed, run again when their config changed."""

import json
import os

import jax
import pytest

from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.workdir import Step, run_steps, unfinished


class Killed(BaseException):
    pass


def make(calls, *, rate=0.1, fail=()):
    def step(name, config, inputs=()):
        def run(directory):
            calls.append(name)
            with (directory / "out.txt").open("a") as file:
                file.write("x")
            if name in fail:
                raise Killed

        return Step(name, run, config, inputs)

    return [
        step("data", {"root": "here"}),
        step("train", {"rate": rate, "sizes": (1, 2)}, ["data"]),
        step("rank", {}, ["train"]),
    ]


def test_finished_steps_are_skipped(tmp_path):
    calls = []
    run_steps(tmp_path, make(calls))
    run_steps(tmp_path, make(calls))
    assert calls == ["data", "train", "rank"]


def test_a_killed_step_goes_on_in_its_folder(tmp_path):
    calls = []
    with pytest.raises(Killed):
        run_steps(tmp_path, make(calls, fail={"train"}))
    run_steps(tmp_path, make(calls))
    assert calls == ["data", "train", "train", "rank"]
    assert (tmp_path / "train" / "out.txt").read_text() == "xx"


def test_a_changed_config_names_the_field_and_keeps_the_old_folder(tmp_path, caplog):
    calls = []
    run_steps(tmp_path, make(calls))
    with caplog.at_level("INFO", logger="absl"):
        run_steps(tmp_path, make(calls, rate=0.2))
    assert calls == ["data", "train", "rank", "train", "rank"]
    assert any("rate: 0.1 -> 0.2" in r.getMessage() for r in caplog.records)
    assert (tmp_path / "train" / "out.txt").read_text() == "x"
    kept = list((tmp_path / "superseded").glob("train-*/step.json"))
    assert len(kept) == 1 and json.loads(kept[0].read_text())["config"]["rate"] == 0.1


def test_steps_of_equal_settings_are_taken_from_another_run(tmp_path, caplog):
    calls = []
    run_steps(tmp_path / "a", make(calls))
    (tmp_path / "a" / "data" / "checkpoints").mkdir()
    with caplog.at_level("INFO", logger="absl"):
        run_steps(tmp_path / "b", make(calls, rate=0.2), reuse=[tmp_path / "a"])
    assert calls == ["data", "train", "rank", "train", "rank"]
    said = [record.getMessage() for record in caplog.records]
    assert f"step data is taken from {tmp_path / 'a'}" in said
    assert any(line.startswith("run: step 2 of 3 (train), about 0:00 left") for line in said)
    left, taken = (tmp_path / name / "data" for name in "ab")
    assert (taken / "out.txt").samefile(left / "out.txt")
    assert not (taken / "checkpoints").exists()
    (left / "out.txt").unlink()  # one run does not need the other
    run_steps(tmp_path / "b", make(calls, rate=0.2))
    assert len(calls) == 5


def test_a_step_that_has_begun_goes_on_though_another_run_finished_it(tmp_path):
    calls, others = [], [tmp_path / "a"]
    run_steps(tmp_path / "a", make(calls))
    with pytest.raises(Killed):
        run_steps(tmp_path / "b", make(calls, fail={"train"}))
    assert unfinished(tmp_path / "b", make(calls), reuse=others) == ["train"]
    calls.clear()
    run_steps(tmp_path / "b", make(calls), reuse=others)
    assert calls == ["train"]


def record_of(folder):
    return json.loads((folder / "step.json").read_text())


def test_a_step_that_was_killed_counts_the_time_to_its_last_file(tmp_path):
    calls, folder = [], tmp_path / "train"
    for wrote in (1030, 1005):
        with pytest.raises(Killed):
            run_steps(tmp_path, make(calls, fail={"train"}))
        record = record_of(folder)
        assert not record["finished"] and "seconds" not in record["starts"][-1]
        os.utime(folder / "step.json", (1000, 1000))
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "deep" / "checkpoint").touch()
        os.utime(folder / "deep" / "checkpoint", (wrote, wrote))
        os.utime(folder / "out.txt", (500, 500))  # of before the start
    run_steps(tmp_path, make(calls))
    record = record_of(folder)
    *killed, last = record["starts"]
    told = [(start["seconds"], start["devices"]) for start in killed]
    assert told == [(30, jax.device_count()), (5, jax.device_count())]
    assert last["devices"] == jax.device_count() and last["ended"] > "2026"
    assert not any("ended" in start for start in killed)
    assert 0 < last["seconds"] < 60
    run_steps(tmp_path, make(calls))
    assert calls.count("train") == 3 and calls.count("rank") == 1


def test_what_a_step_took_goes_with_it_to_runs_that_take_it(tmp_path):
    calls = []
    run_steps(tmp_path / "a", make(calls))
    before = (tmp_path / "a/train/step.json").read_bytes()
    for name, other in ("ba", "cb"):
        run_steps(tmp_path / name, make(calls), reuse=[tmp_path / other])
        taken = record_of(tmp_path / name / "train")
        assert taken == {**json.loads(before), "taken_from": str(tmp_path / "a")}
    assert (tmp_path / "a/train/step.json").read_bytes() == before
    assert len(calls) == 3


def test_a_damaged_step_of_another_run_is_not_taken(tmp_path, caplog):
    calls = []
    run_steps(tmp_path / "a", make(calls), ["data"])
    (tmp_path / "a" / "data" / "out.txt").write_text("y")
    steps = make(calls)
    assert unfinished(tmp_path / "b", steps, ["data"], [tmp_path / "a"]) == ["data"]
    with caplog.at_level("WARNING", logger="absl"):
        run_steps(tmp_path / "b", make(calls), ["data"], reuse=[tmp_path / "a"])
    assert calls == ["data", "data"] and (tmp_path / "b/data/out.txt").read_text() == "x"
    assert "out.txt has other content, so step data is not taken" in caplog.text


def test_only_some_steps(tmp_path):
    calls = []
    with pytest.raises(UserError, match="rank needs train"):
        run_steps(tmp_path, make(calls), ["data", "rank"])
    assert calls == ["data"]
    run_steps(tmp_path, make(calls), ["train"])
    assert calls == ["data", "train"]
    with pytest.raises(UserError, match="no step 'rnak'.*data, train, rank"):
        run_steps(tmp_path, make(calls), ["rnak"])
