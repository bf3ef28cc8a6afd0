"""experiment.py: its settings, its budget, and the way from one machine to the next, with a stub in
place of launch/train.py."""

import argparse
import io
import json
import sys
import tarfile

import pytest

from benchmarks.accelerator import experiment, loads, plan, results_page, supervise
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import from_config

# Trains for ever, until it is stopped; where a checkpoint is, it finishes.
STUB = """
import json, pathlib, signal, sys, time
run = pathlib.Path(sys.argv[1])
def step(name, finished):
    (run / name).mkdir(parents=True, exist_ok=True)
    record = {"finished": finished, "seconds": 2.0}
    (run / name / "step.json").write_text(json.dumps(record))
def save(*_):
    (run / "sft" / "checkpoints" / "7").mkdir(parents=True)
    (run / "sft" / "checkpoints" / "7" / "state").write_text("seven")
    sys.exit(0)
assert pathlib.Path("data/beauty/beauty.item").stat().st_mtime == 0
step("data", True)
step("sft", False)
checkpoint = run / "sft" / "checkpoints" / "7" / "state"
if not checkpoint.exists():
    signal.signal(signal.SIGTERM, save)
    (run / "sft" / "metrics.jsonl").write_text('{"step": 7, "loss": 0.5}\\n')
    time.sleep(60)
assert checkpoint.read_text() == "seven"
step("sft", True)
row = {"system": "sft", "protocol": "full", "seed": 0, "users": 9, "hr@10": 0.25}
(run / "table.json").write_text(json.dumps([row]))
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Loads with data; a model that is there; launch/train.py replaced by the stub."""
    archive = tmp_path / "beauty.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        entry = tarfile.TarInfo("beauty/beauty.item")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"abc"))
    loads.pack([[("data/beauty.tar.gz", archive)]], tmp_path / "carried")

    def stub(name, flags, work, given):
        argv = [sys.executable, "-c", STUB, name]
        return supervise.Command(name, argv, work, {}, given.out / "log.txt")

    monkeypatch.setattr(experiment, "_command", stub)
    monkeypatch.setattr(experiment, "_RESERVE", 0.0)

    def call(work, *more):
        (tmp_path / work / "model").mkdir(parents=True, exist_ok=True)
        return experiment.main(
            [f"--carried={tmp_path}/carried", f"--work={tmp_path / work}", *more]
        )

    return call


def test_a_second_machine_goes_on_where_the_first_stopped(machine, tmp_path, capsys):
    assert machine("first", f"--out={tmp_path}/out", "--minutes=0.05") == 0
    said = capsys.readouterr().out
    assert "pipeline/data is finished, 2.0 s" in said and "--continue-from=DIR" in said
    record = json.loads((tmp_path / "out" / "experiment.json").read_text())
    assert record["states"] == {"pipeline": "stopped"}
    steps = {step["step"]: step for step in record["runs"]["pipeline"]["steps"]}
    assert steps["data"]["finished"] and not steps["sft"]["finished"]
    assert steps["sft"]["last"] == {"step": 7, "loss": 0.5}
    assert machine("second", f"--out={tmp_path}/out2", f"--continue-from={tmp_path}/out") == 0
    assert "finished after" in capsys.readouterr().out
    record = json.loads((tmp_path / "out2" / "experiment.json").read_text())
    assert record["states"] == {"pipeline": "finished"}
    assert "| full | sft | 1 | 9 | 0.2500 |" in (tmp_path / "out2" / "experiment.md").read_text()


def test_the_same_call_goes_on_on_the_same_machine(machine, tmp_path):
    for state in ("stopped", "finished"):
        assert machine("work", f"--out={tmp_path}/out", "--minutes=0.05") == 0
        record = json.loads((tmp_path / "out" / "experiment.json").read_text())
        assert record["states"] == {"pipeline": state}


def test_results_of_another_experiment_are_not_overwritten(machine, tmp_path, capsys):
    assert machine("work", f"--out={tmp_path}/out", "--minutes=0.05") == 0
    assert machine("work", f"--out={tmp_path}/out", "--stage=features") == 2
    assert "of another stage (pipeline); give another --out" in capsys.readouterr().err


def test_what_is_missing_is_one_line(machine, tmp_path, capsys):
    arguments = [f"--out={tmp_path}/out", "--data=microlens"]
    assert machine("work", *arguments) == 2
    assert "the loads hold no data/microlens-50k.tar.gz" in capsys.readouterr().err
    assert machine("work", *arguments, f"--continue-from={tmp_path}/none") == 2
    assert "give the --out of the call to continue" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "data"),
    [
        *((stage, data) for stage in ("pipeline", "features") for data in experiment.FOLDERS),
        ("cached", "beauty"),
        ("cached", "microlens"),
    ],
)
@pytest.mark.parametrize("more", [{}, {"scale": 0.01}, {"scale": 0.01, "tiny": True}])
def test_every_plan_names_settings_that_are_within_their_ranges(data, stage, more):
    given = argparse.Namespace(**{"data": data, "stage": stage, "scale": 1, "tiny": False} | more)
    for flags in experiment.make_plan(given).runs.values():
        path, _, variant = flags[0].removeprefix("--config=").partition(":")
        assert path.endswith("benchmarks/accelerator/plan.py")
        settings = from_config(Settings, plan.get_config(variant))
        assert settings.model.dtype == ("float32" if more.get("tiny") else "bfloat16")
        full = from_config(Settings, plan.get_config(",".join(variant.split(",")[:2])))
        steps = [
            (s.sft.steps, s.summarizer.steps, s.sasrec.steps, s.cached.steps)
            for s in (settings, full)
        ]
        assert steps[0] < steps[1] or not more
        assert bool(settings.data.max_users) == bool(more)


def test_seeds_share_the_data_and_the_candidates():
    given = argparse.Namespace(data="beauty", stage="features", scale=1, tiny=False)
    runs = experiment.make_plan(given).runs
    assert len(runs) == 9
    for flags in runs.values():
        assert {"--config.data.seed=0", "--config.evaluation.seed=0"} <= set(flags)
    assert {flag for flags in runs.values() for flag in flags if "config.seed" in flag} == {
        f"--config.seed={seed}" for seed in range(3)
    }


def test_a_scale_that_is_none_is_refused():
    for given in ("beauty,small,scale=0", "beauty,small,scale=2", "beauty,small,half"):
        with pytest.raises(UserError, match="scale"):
            plan.get_config(given)
    with pytest.raises(UserError, match="did you mean 'beauty'"):
        plan.get_config("beuty,small")


def test_seeds_of_a_system_are_averaged_and_a_baseline_counts_once():
    def run(seed, value):
        rows = [
            {"system": "popularity", "protocol": "full", "seed": seed, "users": 5, "hr@10": 0.125},
            {"system": "sasrec", "protocol": "full", "seed": seed, "users": 5, "hr@10": value},
        ]
        return {"steps": [], "table": rows}

    record = {
        "data": "beauty", "stage": "features", "scale": 1.0, "devices": None,
        "seconds_of_this_call": 1.0,
        "runs": {"a": run(0, 0.25), "b": run(1, 0.75), "c": {"steps": [], "table": None}},
    }  # fmt: skip
    lines = results_page.markdown(record).splitlines()
    assert "| full | popularity | 1 | 5 | 0.1250 |" in lines
    assert "| full | sasrec | 2 | 5 | 0.5000 ±0.3536 |" in lines
