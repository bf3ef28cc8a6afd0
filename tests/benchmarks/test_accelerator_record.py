"""The record of measure.py: what survives a crash, a hang and a kill, and what a next call does."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.accelerator import markdown, measure, process, record

PARTS = {
    "good": """
TITLE = "A good part"
SECONDS = 1
def run(ask):
    for case in ("a", "b"):
        if case not in ask.done:
            ask.report(case, {"value": 1.5, "pid": os.getpid(), "tiny": ask.tiny})
""",
    "crashes": """
TITLE = "A part that crashes"
SECONDS = 1
def run(ask):
    ask.report("before", {"value": 1})
    sys.stderr.write("the reason\\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGSEGV)
""",
    "hangs": """
TITLE = "A part that hangs"
SECONDS = 1
def run(ask):
    if "before" not in ask.done:
        ask.report("before", {"value": 1, "left": ask.seconds_left()})
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    ask.report("after", {"value": 2})
""",
    "stops": """
TITLE = "A part that sees that its next case does not fit"
SECONDS = 1
def run(ask):
    if "first" not in ask.done:
        ask.report("first", {"value": 1})
        raise record.OutOfTime
    ask.report("second", {"value": 2})
""",
    "raises": """
TITLE = "A part whose one case fails"
SECONDS = 1
def run(ask):
    record.attempt(ask, "one", lambda: 1 / 0)
    record.attempt(ask, "two", lambda: {"value": 2})
    raise KeyError("and then the part itself")
""",
    "long": "TITLE = 'A part that takes long'\nSECONDS = 1000\ndef run(ask): ask.report('x', {})\n",
}
REAL_PARTS = measure.PARTS  # the fixture below puts others in their place
MACHINE = {
    "device": "a device", "platform": "gpu", "jax": "1", "torch": "2", "commit": "abc",
}  # fmt: skip


@pytest.fixture(autouse=True)
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The package of the parts above, in which measure.py looks."""
    folder = tmp_path / "path" / "stub_parts"
    folder.mkdir(parents=True)
    head = "import os, signal, sys, time\nfrom benchmarks.accelerator import record\n"
    for name, text in PARTS.items():
        (folder / f"{name}.py").write_text(head + text)
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setenv("PYTHONPATH", str(folder.parent))
    monkeypatch.setattr(measure, "PARTS", list(PARTS))
    monkeypatch.setattr(process, "environment", lambda: MACHINE)
    monkeypatch.setattr(measure, "PATIENCE", 0.5)
    monkeypatch.setattr(measure, "SHORTEST", 0.5)
    return str(folder.parent)


def run(out: Path, *flags: str) -> tuple[int, dict]:
    status = measure.main([f"--out={out}", *flags], "stub_parts")
    return status, json.loads((out / "accelerator.json").read_text())["parts"]


def test_a_part_that_fails_costs_only_itself(tmp_path: Path, capsys: pytest.CaptureFixture):
    status, parts = run(tmp_path, "--minutes=1")
    assert status == 1
    assert list(parts) == ["good", "crashes", "hangs", "stops", "raises"]
    assert {name: part["state"] for name, part in parts.items()} == {
        "good": "done", "crashes": "failed", "hangs": "failed", "stops": "unfinished",
        "raises": "failed",
    }  # fmt: skip
    assert list(parts["good"]["rows"]) == ["a", "b"]
    assert parts["good"]["rows"]["a"]["tiny"] is False
    assert parts["good"]["rows"]["a"]["pid"] != os.getpid()
    assert "status -11" in parts["crashes"]["reason"] and "the reason" in parts["crashes"]["reason"]
    assert list(parts["crashes"]["rows"]) == ["before"]
    assert "killed after" in parts["hangs"]["reason"]
    assert 0 < parts["hangs"]["rows"]["before"]["left"] <= 1
    assert list(parts["stops"]["rows"]) == ["first"]
    assert parts["raises"]["rows"]["one"]["error"].startswith("ZeroDivisionError")
    assert parts["raises"]["rows"]["two"] == {"value": 2}
    assert "and then the part itself" in parts["raises"]["reason"]
    printed = capsys.readouterr().out
    assert "long: left for the next call, 1000 s expected" in printed
    assert "not done: crashes, hangs, stops, raises, long" in printed


def test_the_next_call_continues(tmp_path: Path, capsys: pytest.CaptureFixture):
    before = run(tmp_path, "--parts=good,hangs,stops")[1]
    capsys.readouterr()
    status, parts = run(tmp_path, "--parts=good,hangs,stops")
    assert status == 0
    assert parts["good"] == before["good"]
    assert {name: list(part["rows"]) for name, part in parts.items()} == {
        "good": ["a", "b"], "hangs": ["before", "after"], "stops": ["first", "second"],
    }  # fmt: skip
    assert parts["hangs"]["rows"]["before"] == before["hangs"]["rows"]["before"]
    assert parts["hangs"]["seconds"] > before["hangs"]["seconds"]
    assert "reason" not in parts["hangs"]
    printed = capsys.readouterr().out
    assert "good: done before, 2 rows" in printed
    assert printed.index("A part that sees") < printed.index("A part that hangs"), (
        "failed ones last"
    )

    again = run(tmp_path, "--parts=good", "--again=good")[1]
    assert again["good"]["rows"]["a"]["pid"] != before["good"]["rows"]["a"]["pid"]


def test_a_part_cut_off_by_the_end_of_the_call_is_not_a_failed_one(tmp_path: Path):
    _, parts = run(tmp_path, "--parts=hangs", "--minutes=0.03", "--tiny")
    assert parts["hangs"]["state"] == "unfinished"
    assert list(parts["hangs"]["rows"]) == ["before"]


def test_rows_survive_a_kill_and_the_worker_goes_too(tmp_path: Path, stubs: str):
    program = (
        "from benchmarks.accelerator import measure, process\n"
        f"measure.PARTS = ['good', 'hangs']; process.environment = lambda: {MACHINE}\n"
        f"measure.main(['--out={tmp_path}'], 'stub_parts')"
    )
    path = os.pathsep.join([stubs, str(process.ROOT)])
    running = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    found = tmp_path / "accelerator.json"
    _until(lambda: found.exists() and "before" in found.read_text())
    (worker,) = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    running.kill()
    running.wait()
    _until(lambda: not _alive(int(worker)))
    _, parts = run(tmp_path, "--parts=good,hangs")
    assert list(parts["good"]["rows"]) == ["a", "b"]
    assert list(parts["hangs"]["rows"]) == ["before", "after"]


def _until(holds) -> None:
    for _ in range(400):
        if holds():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come")


def _alive(pid: int) -> bool:
    """Not gone, and not a process that has ended and waits to be collected."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_record_of_another_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(tmp_path, "--parts=good")
    text = (tmp_path / "accelerator.json").read_text()
    with pytest.raises(SystemExit, match="made with tiny False, here it is True: give another"):
        run(tmp_path, "--parts=good", "--tiny")
    monkeypatch.setattr(process, "environment", lambda: MACHINE | {"device": "another"})
    with pytest.raises(SystemExit, match="made with device a device, here it is another"):
        run(tmp_path, "--parts=good")
    monkeypatch.setattr(process, "environment", lambda: MACHINE | {"platform": "cpu"})
    with pytest.raises(SystemExit, match="finds no accelerator here; --tiny"):
        run(tmp_path, "--parts=good")
    assert (tmp_path / "accelerator.json").read_text() == text


def test_an_unknown_part_is_named(tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        run(tmp_path, "--parts=good,nosuch")
    assert "--parts: no part nosuch; there are good, crashes" in capsys.readouterr().err


def test_files_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = record.Record(tmp_path, MACHINE)
    kept.begin("part", "A part")
    kept.add("part", "first", {"value": 1})
    before = (tmp_path / "accelerator.json").read_text()

    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kept.add("part", "second", {"value": 2})
    assert (tmp_path / "accelerator.json").read_text() == before
    monkeypatch.undo()
    assert record.Record(tmp_path, MACHINE).done("part") == {"first"}


def test_rows_hold_numbers_and_text(tmp_path: Path):
    import numpy as np

    row = {"a": np.float32(0.5), "b": np.int64(3), "c": float("nan"), "d": np.bool_(True), "e": "x"}
    assert record.plain(row) == {"a": 0.5, "b": 3, "c": "nan", "d": True, "e": "x"}
    with pytest.raises(TypeError, match="a is a list"):
        record.plain({"a": [1]})


def test_a_table_has_a_column_for_every_key():
    lines = markdown.table({"a": {"ms": 0.123456, "n": 12345}, "b": {"n": 1, "error": "x|y\nz"}})
    assert lines == [
        "| case | ms | n | error |",
        "| --- | --- | --- | --- |",
        "| a | 0.1235 | 12,345 |  |",
        "| b |  | 1 | x/y z |",
    ]


def test_the_real_parts_say_title_and_seconds():
    folder = process.ROOT / "benchmarks" / "accelerator" / "parts"
    assert sorted(REAL_PARTS) == sorted(path.stem for path in folder.glob("[a-z]*.py"))
    for name in REAL_PARTS:
        title, seconds = process.title_and_seconds(measure.PACKAGE, name)
        assert title and 0 < seconds < 510
