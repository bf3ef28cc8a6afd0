"""A sweep: its points are checked first, run one after the other, go on, and end in one table."""

import contextlib
import csv
import io
import json
import logging
import re
import subprocess
import types
from pathlib import Path

import launched
import pytest
from html_check import Page

from mmsrec_jax import methods
from mmsrec_jax.data import build
from mmsrec_jax.methods import sweep, sweep_run
from mmsrec_jax.methods.settings import described
from mmsrec_jax.methods.sweep import Sweep, each
from mmsrec_jax.methods.sweep_run import SweepRun
from mmsrec_jax.pages import run_folder
from mmsrec_jax.runtime import startup
from mmsrec_jax.runtime.buckets import lock as bucket_lock
from mmsrec_jax.runtime.buckets import run as buckets
from mmsrec_jax.runtime.buckets.objects import Objects
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.workdir import Step, run_steps

ROOT = Path(__file__).resolve().parents[2]
FILE = Path("configs/sweeps/some.py")
TINY = {
    "data.source": "toyshop", "data.toyshop.num_users": 80, "data.toyshop.num_items": 40,
    "data.toyshop.num_groups": 3, "sasrec.steps": 4, "sasrec.evaluate_every": 4,
    "sasrec.batch_size": 8, "sasrec.length": 6, "sasrec.layers": 1, "sasrec.mlp_dim": 8,
    "sasrec.dim": 8, "evaluation.users": 30, "evaluation.negatives": (5,), "evaluation.k": (1, 5),
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def made(points, **options):
    return Sweep("configs/base.py:sasrec", points, TINY, **options)


@pytest.mark.parametrize("file", sorted((ROOT / "configs/sweeps").glob("[a-z]*.py")), ids=str)
def test_the_sweeps_that_come_with_it_are_in_order(file):
    found = sweep.points(file, sweep.read(file))
    assert len(found) >= 3 and f"--sweep=configs/sweeps/{file.name} " in file.read_text()


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ({"a": {"sasrec.stpes": 8}}, "point a: --config.sasrec.stpes: .* did you mean 'steps'"),
        ({"a": {"sasrec.dim": 0}}, "point a: config.sasrec.dim=0: must be at least 1"),
        ({"a": {}, "b": {"sasrec.dim": 8}}, "points a and b have equal settings"),
        ({"a": {}, "b": {"data.toyshop.num_users": 9}},
         "point b: config.data.toyshop.num_users: 80 -> 9, other than point a"),
        ({"a": {}, "b": {"evaluation.seed": 1}}, "point b: config.evaluation.seed: 0 -> 1"),
        ({"../a": {}}, "point '../a': a folder has this name"),
        ({"logs": {}}, "point 'logs'"),
        ({"a": {"method": "scaling"}}, "point a: config.method='scaling'"),
        ({"a": {"method": "both"}}, "point a: config.method='both': a point is about one row"),
        ({"a": {}, "b": {"model.path": "no/model"}}, "point b: .*no/model"),
        ({}, "has no points"),
    ],
)  # fmt: skip
def test_a_bad_point_is_refused_before_anything_runs(points, message):
    with pytest.raises(UserError, match=f"^{re.escape(str(FILE))}: .*{message}") as error:
        sweep.points(FILE, made(points))
    assert "\n" not in str(error.value)


def test_files_and_flags_that_say_nothing_are_refused(tmp_path):
    (tmp_path / "empty.py").write_text('"""Nothing."""\n')
    for path, message in (("empty.py", "no function get_sweep"), ("absent.py", "no such file")):
        with pytest.raises(UserError, match=message):
            sweep.read(tmp_path / path)
    assert sweep.parse_settings(["config.sft.steps=3", "seeds=(0, 1)"]) == {
        "sft.steps": "3", "seeds": "(0, 1)",
    }  # fmt: skip
    for wrong in (["sft.steps"], ["=3"], ["seed=1", "config.seed=2"]):
        with pytest.raises(UserError, match="--set=.*write --set=FIELD=VALUE"):
            sweep.parse_settings(wrong)
    found = made(each("sasrec.dim", (16, 4)))
    assert sweep.with_settings(FILE, found, {"sft.steps": "3"}).settings["sft.steps"] == "3"
    with pytest.raises(UserError, match=f"--set=sasrec.dim=8: point dim-16 of {FILE} sets sasrec"):
        sweep.with_settings(FILE, found, {"sasrec.dim": "8"})


def test_a_point_that_reads_what_users_state_is_finished_with_these_files_alone(tmp_path):
    root, workdir = tmp_path / "shop", tmp_path / "sweep"
    root.mkdir()
    (root / "shop.inter").write_text("user_id:token\titem_id:token\nu\ti\n")
    (root / "shop.user").write_text("user_id:token\tage:token\nu\t35\n")
    found = Sweep(
        "configs/quickstart.py:mllm_srec",
        {"silent": {}, "told": {"data.user_fields": ("age",)}},
        {"data.source": "atomic", "data.root": str(root)},
    )
    run = SweepRun(FILE, found, sweep.points(FILE, found), workdir, str(workdir), ["train"])
    for point in run.points:
        data = point.settings.data
        steps = [Step("data", write_a_file, {"files": build.source_files(data)})]
        if data.user_fields:
            steps.append(Step("users", write_a_file, {"files": build.user_files(data)}))
        folder = workdir / point.name
        run_steps(folder, steps)
        run_folder.begin(folder, described(point.settings), [step.name for step in steps])
    assert [run._is_finished(point) for point in run.points] == [True, True]
    (root / "shop.user").write_text("user_id:token\tage:token\nu\t36\n")
    assert [run._is_finished(point) for point in run.points] == [True, False]


def write_a_file(directory):
    (directory / "file").write_text("what the step left")


def test_the_points_of_a_sweep_in_a_bucket_are_there_too(bucket_server, machine, monkeypatch):
    found = made(each("sasrec.dim", (16, 4)))
    points, commands = sweep.points(FILE, found), []

    class There:
        """launch/train.py, which works in a copy of its own."""

        returncode, stdout = 0, ("what it says\n",)

        def __init__(self, command, *, env, **_):
            commands.append(command)
            (url,) = [text for text in command if text.startswith("--workdir=")]
            point = points[len(commands) - 1]
            settings = point.settings
            with buckets.opened(url.removeprefix("--workdir=")) as folder:
                files = {"files": build.source_files(settings.data)}
                run_steps(folder, [Step("data", write_a_file, files)])
                run_folder.begin(folder, described(settings), ["data"])

        def wait(self):
            return self.returncode

    monkeypatch.setattr(subprocess, "Popen", There)
    for _ in range(2):
        with buckets.opened("gs://lab/sweep") as workdir:
            run = SweepRun(FILE, found, points, workdir, "gs://lab/sweep", ["train"])
            assert [run._run_point(point) for point in points] == ["", ""]
        machine("another")
    assert len(commands) == 2
    assert commands[1][-2:] == ["--workdir=gs://lab/sweep/dim-4", "--reuse=gs://lab/sweep/dim-16"]
    names = bucket_server.names("lab", "sweep/")
    assert {"sweep/dim-4/data/file", "sweep/logs/dim-4.log"} <= set(names)
    with pytest.raises(UserError, match="gs://lab/sweep: another run is under way"):
        with buckets.opened("gs://lab/sweep"):
            monkeypatch.setattr(buckets.local_lock, "only_run", lambda *_: contextlib.nullcontext())
            with buckets.opened("gs://lab/sweep"):
                raise AssertionError("two at once")


def test_a_point_in_a_bucket_is_waited_for_and_a_refusal_is_not(
    bucket_server, machine, monkeypatch
):
    found = made({"a": {}})
    with buckets.opened("gs://lab/sweep") as workdir:
        run = SweepRun(FILE, found, sweep.points(FILE, found), workdir, "gs://lab/sweep", ["train"])
        began = bucket_lock.only_run(Objects("gs://lab/sweep/a"))  # as on another machine
        began.__enter__()
        waits = []

        def sleep(seconds):
            waits.append(seconds)
            began.__exit__(None, None, None)

        monkeypatch.setattr(sweep_run, "time", types.SimpleNamespace(sleep=sleep))
        assert not (workdir / "a").exists()
        run._wait_for_others(workdir / "a")
        assert waits == [sweep_run._POLL]
        bucket_server.fault = lambda method, path: 403 if path.endswith("/a/run.lock") else None
        (workdir / "a").mkdir()
        with pytest.raises(UserError, match="gs://lab/sweep/a/run.lock: no permission"):
            run._wait_for_others(workdir / "a")


class Here:
    """launch/train.py, run in this process before anyone reads what it says."""

    started: list[list[str]]

    def __init__(self, command, *, env, **_):
        assert command[:1] == ["train"] and env["JAX_COMPILATION_CACHE_DIR"]
        self.started.append(command[1:])
        given = [text.partition("=") for text in command[1:]]
        flags = {name: [v for n, _, v in given if n == name] for name, *_ in given}
        said = io.StringIO()
        handler = logging.StreamHandler(said)
        handler.setFormatter(startup.PlainFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logging.getLogger("absl").addHandler(handler)
        self.returncode = 0
        try:
            config = sweep._config([text for text in command if text.startswith("--config")])
            (workdir,), reuse = flags["--workdir"], flags.get("--reuse", ())
            methods.run(config, Path(workdir), reuse=[Path(path) for path in reuse])
        except UserError as error:
            logging.getLogger("absl").error("%s", error)
            self.returncode = 2
        finally:
            logging.getLogger("absl").removeHandler(handler)
        self.stdout = iter(said.getvalue().splitlines(keepends=True))

    def wait(self):
        return self.returncode


@pytest.fixture
def started(monkeypatch):
    monkeypatch.setattr(Here, "started", [], raising=False)
    monkeypatch.setattr(subprocess, "Popen", Here)
    return Here.started


def test_points_are_run_skipped_taken_up_and_compared(tmp_path, started, caplog):
    caplog.set_level("INFO", logger="absl")
    workdir = tmp_path / "sweep"
    found = made(
        {**each("sasrec.dim", (16, 4)), "twice": {"seeds": (0, 1)}, "bad": {"mesh.data": 3}}
    )
    run = SweepRun(FILE, found, sweep.points(FILE, found), workdir, str(workdir), ["train"])
    text, failed = run.run()
    assert failed == 1 and "bad failed: config.mesh: data=3" in text
    said = [record.getMessage() for record in caplog.records]
    assert "4 of 4 points left" in said
    assert sum(bool(re.match(r"[123] of 4 points left, about \d", line)) for line in said) == 3
    log = (workdir / "logs" / "dim-4.log").read_text()
    assert f"step data is taken from {workdir}/dim-16" in log and "step sasrec begins" in log
    check_numbers(workdir, text)

    started.clear()
    (workdir / "dim-4" / "evaluation" / "step.json").unlink()  # as if it was killed
    again, _ = SweepRun(FILE, found, run.points[:3], workdir, str(workdir), ["train"]).run()
    assert [command[-2] for command in started] == [f"--workdir={workdir / 'dim-4'}"]
    assert again == text[: text.index("\nbad failed")]
    page = Page((workdir / "sweep.html").read_text())
    assert page.problems == []
    (line,) = [row for row in page.table("30 users, protocol full") if row[0] == "dim-4"]
    (twice,) = [row for row in page.table("30 users, protocol full") if row[0] == "twice"]
    assert twice[1:3] == ["sasrec", "2"]
    assert line[1:3] == ["sasrec", "1"] and line[3] in again and " to " in line[4]
    drawn = [given["aria-label"] for tag, given in page.seen if tag == "svg"]
    assert len(drawn) == 4 and all("dim-16: " in label for label in drawn)


def check_numbers(workdir, text):
    """Means anew from the table of each run; every one in the CSV, the JSON and the text. Their
    intervals are tested beside the comparison of runs."""
    rows = json.loads((workdir / "sweep.json").read_text())["rows"]
    with (workdir / "sweep.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert {row["point"] for row in rows} == {"dim-16", "dim-4", "twice"} and len(written) == len(
        rows
    )
    for row, line in zip(rows, written, strict=True):
        seeds = ("seed-0", "seed-1") if row["point"] == "twice" else ("",)
        tables = [workdir / row["point"] / seed / "table.json" for seed in seeds]
        own = [
            one[row["metric"]]
            for table in tables
            for one in json.loads(table.read_text())
            if (one["system"], one["protocol"]) == ("sasrec", row["protocol"])
        ]
        assert len(own) == len(seeds) and row["value"] == pytest.approx(sum(own) / len(own))
        assert line["sasrec.dim"] == row["point"].partition("dim-")[2]
        assert float(line["value"]) == row["value"]
        if row["metric"] in ("ndcg@5", "hr@5"):
            assert f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]" in text


def test_a_failure_ends_the_sweep_when_asked(tmp_path, started):
    found = made({"bad": {"mesh.data": 3}, "good": {}})
    points, workdir = sweep.points(FILE, found), tmp_path / "s"
    run = SweepRun(FILE, found, points, workdir, str(workdir), ["train"], stop_on_failure=True)
    with pytest.raises(UserError, match="stopped at point bad"):
        run.run()
    assert len(started) == 1
    (bad, good) = json.loads((tmp_path / "s" / "sweep.json").read_text())["points"]
    assert bad["problem"].startswith("config.mesh: data=3") and not good["problem"]


def test_the_command_lists_points_and_refuses_in_one_line(bucket_server, tmp_path):
    flags = ["--sweep=configs/sweeps/neighbors.py", f"--workdir={tmp_path / 's'}", "--list"]
    given = ["--config=configs/base.py", "--set=data.root=some where"]
    (tmp_path / "some where").mkdir()
    status, said = launched.run("launch/sweep.py", *flags, "--set=sft.steps=0", log=tmp_path / "a")
    (line,) = said.splitlines()
    assert status == 2 and "neighbors.py: point similar-5: config.sft.steps=0: must be" in line
    status, said = launched.run("launch/sweep.py", *flags, "--set=sft.steps=30", log=tmp_path / "b")
    commands = said.splitlines()
    assert status == 0 and len(commands) == 5 and not (tmp_path / "s").exists()
    assert all(" --config.sft.steps=30 --config." in command for command in commands)
    status, said = launched.run("launch/sweep.py", *flags, *given, log=tmp_path / "c")
    assert status == 2 and "some where" in said
    url = ["--workdir=gs://lab/s", f"--local_dir={tmp_path / 'copies'}", "--set=sft.steps=30"]
    bucket_server.put("lab", "s/similar-5/run.json", b"{}")
    status, said = launched.run(
        "launch/sweep.py", flags[0], *url, "--list", log=tmp_path / "d",
        variables=bucket_server.environment,
    )  # fmt: skip
    commands = [line for line in said.splitlines() if "--workdir=" in line]
    assert status == 0 and len(commands) == 5 and "--reuse" not in commands[0]
    assert all("--reuse=gs://lab/s/similar-5" in command for command in commands[1:])
    assert bucket_server.names("lab") == ["s/similar-5/run.json"]
