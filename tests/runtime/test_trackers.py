"""The sinks of the metrics log: a run that was killed goes on in the same run of every tracker, and
no point is there twice. W&B, MLflow and trackio are tried on this machine alone, where they are
installed; a tracker of our own tries the same everywhere."""

import dataclasses
import importlib.util
import json
import math
import struct
import subprocess
import sys

import pytest

from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.runtime import trackers
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.metrics_log import MetricsLog
from mmsrec_jax.runtime.settings import as_dict, from_config, to_config
from mmsrec_jax.runtime.trackers import TrackingSettings, tracked

CONFIG = {"seed": 3, "sft": {"steps": 4, "fields": ("title", "text")}}
KINDS = ["wandb", "mlflow", "trackio"]


class Memory:
    """A tracker that keeps its runs, and can be out of reach."""

    runs: dict[str, list[tuple[int, dict[str, float]]]] = {}
    ended: dict[str, bool] = {}
    is_away = False

    def __init__(self, about, run):
        self.about, self.run = about, run or f"{about.name}-{len(Memory.runs)}"
        if run and run not in Memory.runs:
            raise ValueError(f"no run {run}\nand a second line")
        Memory.runs.setdefault(self.run, [])

    def log(self, step, values):
        if Memory.is_away:
            raise ConnectionError("out of reach")
        Memory.runs[self.run].append((step, dict(values)))

    def close(self, *, failed):
        Memory.ended[self.run] = failed


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setattr(Memory, "runs", {})
    monkeypatch.setattr(Memory, "ended", {})
    monkeypatch.setattr(Memory, "is_away", False)
    monkeypatch.setitem(trackers.KINDS, "memory", Memory)
    return Memory


class Killed(BaseException):
    pass


def train(workdir, *sinks, start, end, validated=(), killed=False):
    """Steps `start` + 1 to `end`, in folder `sft`; then what follows is never written."""
    settings = TrackingSettings(sinks=sinks, project="tests")
    with tracked(settings, workdir, CONFIG):
        log = MetricsLog(workdir / "sft", resume_step=start)
        try:
            with log:
                for step in range(start + 1, end + 1):
                    log.write(step, {"loss": 1 / step, "time/seconds_per_step": end + step / 100})
                    if step in validated:
                        log.write(step, {"validation/ndcg@10": step / 10})
                if killed:
                    raise Killed
        except Killed:
            pass


def points(lines, name):
    return [(step, values[name]) for step, values in lines if name in values]


def file_lines(workdir):
    rows = [json.loads(line) for line in (workdir / "sft" / "metrics.jsonl").open()]
    return [(row.pop("step"), row) for row in rows]


def test_a_killed_run_goes_on_in_its_tracker_run_without_a_point_twice(memory, tmp_path):
    train(tmp_path, "memory", start=0, end=5, validated=(3,), killed=True)
    assert memory.ended == {f"{tmp_path.parent.name}/{tmp_path.name}/sft-0": True}
    train(tmp_path, "memory", start=2, end=4, validated=(3, 4), killed=True)  # shorter than before
    train(tmp_path, "memory", start=2, end=7, validated=(3, 4, 6))
    ((run, lines),) = memory.runs.items()
    assert memory.ended == {run: False}
    for name in ("loss", "validation/ndcg@10"):
        assert points(lines, name) == points(file_lines(tmp_path), name)
    assert [s for s, _ in points(lines, "time/seconds_per_step")] == list(range(1, 8))
    assert points(lines, "validation/ndcg@10") == [(3, 0.3), (4, 0.4), (6, 0.6)]


def test_a_tracker_that_comes_later_or_again_gets_what_it_lacks(memory, monkeypatch, tmp_path):
    other = type("Other", (Memory,), {})
    monkeypatch.setitem(trackers.KINDS, "other", other)
    train(tmp_path, "memory", start=0, end=2, killed=True)
    train(tmp_path, "other", start=2, end=4, killed=True)
    train(tmp_path, "memory", "tensorboard", start=4, end=6)
    first, second = memory.runs.values()
    assert points(first, "loss") == points(file_lines(tmp_path), "loss")
    assert points(second, "loss") == points(file_lines(tmp_path), "loss")[:4]
    assert [path.name for path in (tmp_path / "sft" / "tensorboard").iterdir()]


def test_a_tracker_out_of_reach_gets_its_lines_later(memory, tmp_path, caplog):
    with tracked(TrackingSettings(sinks=("memory",)), tmp_path, CONFIG):
        with MetricsLog(tmp_path / "sft") as log:
            log.write(1, {"loss": 1.0})
            memory.is_away = True
            for step in (2, 3, 4):
                log.write(step, {"loss": 1.0})
            memory.is_away = False
            log.write(5, {"loss": 1.0})
    (lines,) = memory.runs.values()
    assert [step for step, _ in lines] == [1, 2, 3, 4, 5]
    said = [r.getMessage() for r in caplog.records if "out of reach" in r.getMessage()]
    assert said == ["memory: out of reach; lines wait for it"]
    assert not (tmp_path / "sft" / "tensorboard").exists()


def test_a_run_that_its_tracker_does_not_know_is_one_line(memory, tmp_path):
    train(tmp_path, "memory", start=0, end=2, killed=True)
    memory.runs.clear()
    with pytest.raises(UserError, match=r"memory: run \S+ of \S+trackers.json: .*delete") as error:
        train(tmp_path, "memory", start=2, end=3)
    assert "\n" not in str(error.value) and "second" not in str(error.value)
    (tmp_path / "sft" / "trackers.json").write_text('{"runs": 3}')
    with pytest.raises(UserError, match="trackers.json: damaged .*delete the file"):
        train(tmp_path, "memory", start=2, end=3)


def test_sinks_are_settings_that_run_no_step_again():
    config = to_config(Settings())
    config.tracking.sinks = ("wandb", "tensorboard")
    changed = from_config(Settings, config)
    assert changed.tracking.sinks == ("wandb", "tensorboard")
    assert as_dict(changed) == as_dict(Settings())
    config.tracking.sinks = ("neptune",)
    with pytest.raises(UserError, match="config.tracking.sinks.*neptune.*mlflow"):
        from_config(Settings, config)


def test_a_missing_package_stops_before_any_training(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in KINDS else found(name)
    )
    trackers.check(("tensorboard",))
    for kind in KINDS:
        with pytest.raises(UserError, match=rf"pip install -e '.\[{kind}\]'"):
            trackers.check(("tensorboard", kind))


def test_trackers_are_imported_late():
    program = (
        "import sys, mmsrec_jax.methods, mmsrec_jax.training.loop\n"
        f"print([name for name in {[*KINDS, 'tensorboardX']} if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout.strip() == "[]", ran.stderr


def wandb_lines(folder):
    """The points of offline runs, read from W&B's files: records in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    found, ids = [], set()
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        ids.add(path.stem)
        data, at, whole = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            left = 32768 - at % 32768
            if left < 7:
                at += left
                continue
            size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
            whole += data[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # whole, or the last part
                record = Record.FromString(whole)
                whole = b""
                values = {
                    item.key or item.nested_key[0]: json.loads(item.value_json)
                    for item in record.history.item
                }
                if "step" in values:
                    found.append((values.pop("step"), values))
    assert len(ids) == 1
    return found


def mlflow_lines(folder):
    from mlflow import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert run.data.params["sft.steps"] == "4" and run.info.status == "FINISHED"
    names = {"loss": "loss", "validation/ndcg_at_10": "validation/ndcg@10"}
    return [
        (point.step, {name: point.value})
        for theirs, name in names.items()
        for point in client.get_metric_history(run.info.run_id, theirs)
    ]


def trackio_lines(folder):
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = SQLiteStorage.get_runs("tests")
    return [(row["step"], row) for row in SQLiteStorage.get_logs("tests", run)]


READERS = {"wandb": wandb_lines, "mlflow": mlflow_lines, "trackio": trackio_lines}
_TRAIN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_trackers import train
train(Path.cwd(), sys.argv[2], start=0, end=5, validated=(3,), killed=True)
train(Path.cwd(), sys.argv[2], start=2, end=7, validated=(3, 4, 6))
"""
_READ = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_trackers import READERS
print("LINES", json.dumps(READERS[sys.argv[2]](Path.cwd())))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_tracker_on_this_machine(kind, tmp_path, monkeypatch):
    """In processes of their own: they leave threads and settings behind, and may write until the
    end of theirs."""
    if importlib.util.find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed (pip install -e '.[{kind}]')")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for program in (_TRAIN, _READ):
        ran = subprocess.run(
            [sys.executable, "-c", program, __file__.rpartition("/")[0], kind],
            cwd=tmp_path, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr[-2000:]
    (line,) = [line for line in ran.stdout.splitlines() if line.startswith("LINES ")]
    lines = json.loads(line.removeprefix("LINES "))
    for name in ("loss", "validation/ndcg@10"):
        found = points(lines, name)
        wanted = points(file_lines(tmp_path), name)
        assert [step for step, _ in found] == [step for step, _ in wanted]
        assert all(math.isclose(a, b) for (_, a), (_, b) in zip(found, wanted, strict=True))


def test_defaults_outside_an_experiment():
    assert trackers.current().sinks == ("tensorboard",)
    assert dataclasses.asdict(TrackingSettings())["sinks"] == ("tensorboard",)
