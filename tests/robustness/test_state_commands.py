"""Whole command lines on damaged, occupied and unfit folders: one line, nothing else touched, and
what was begun goes on."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import hostile
import launched
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.robustness

SETTINGS = {
    "data.source": "toyshop", "data.toyshop.num_users": 60, "data.toyshop.num_items": 60,
    "data.toyshop.num_groups": 3, "sasrec.steps": 6, "sasrec.evaluate_every": 3,
    "sasrec.batch_size": 8, "sasrec.dim": 8, "sasrec.length": 8, "evaluation.users": 20,
}  # fmt: skip
TRAIN = ("launch/train.py", "--config=configs/base.py:sasrec")
FLAGS = [f"--config.{name}={value}" for name, value in SETTINGS.items()]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def train(tmp_path, compiled):
    def run(workdir, *flags):
        return hostile.run(
            *TRAIN,
            f"--workdir={workdir}",
            *FLAGS,
            *flags,
            logs=tmp_path / "logs",
            compiled=compiled,
        )

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, compiled):
    folder = tmp_path_factory.mktemp("finished")
    found = hostile.run(
        *TRAIN, f"--workdir={folder / 'run'}", *FLAGS, logs=folder / "logs", compiled=compiled
    )
    assert found.status == 0, found.err[-3000:]
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def table(workdir):
    return (workdir / "table.json").read_text()


# --- the folder of a run --------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["", "s3://bucket/run", " "])
def test_a_workdir_that_is_no_path(train, tmp_path, flag):
    with hostile.untouched(launched.ROOT / "launch"):
        train(flag).check_refused(f"--workdir={flag}")
    assert os.listdir(tmp_path) == ["logs"]


def test_a_workdir_that_is_a_file_or_below_one(train, tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        train(path).check_refused(str(path))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("mine"),
        lambda path: path.symlink_to("nowhere"),
        lambda path: (path.mkdir(), (path / "step.json").mkdir()),
        lambda path: (path.mkdir(), os.mkfifo(path / "step.json")),
        lambda path: (path.mkdir(), (path / "step.json").write_bytes(b"")),
    ],
    ids=["file", "dangling link", "record is a folder", "record is a pipe", "record is empty"],
)
def test_something_else_in_the_place_of_a_step(train, tmp_path, make):
    workdir = tmp_path / "run"
    workdir.mkdir()
    make(workdir / "data")
    train(workdir).check_refused(str(workdir / "data"))


def mounted(folder, *options):
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")


def test_a_read_only_disk(train, tmp_path):
    mounted(tmp_path / "disk", "ro", "size=1m")
    try:
        train(tmp_path / "disk" / "run").check_refused(str(tmp_path / "disk"), "Read-only")
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


@pytest.mark.parametrize("kib", [4, 8, 64, 200, 300, 400, 600])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(train, tmp_path, finished, kib):
    disk = tmp_path / "disk"
    mounted(disk, f"size={kib}k")
    try:
        found = train(disk / "run")
        if found.status:
            strange = [line for line in found.err.splitlines() if not hostile._LINE.fullmatch(line)]
            assert found.status == 2 and not strange, strange[:5]
            assert len(found.errors) == 1
            hostile.check_line(found.errors[0], str(disk), "No space left", "free some space")
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        assert train(disk / "run").status == 0
        assert table(disk / "run") == table(finished)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_second_run_in_one_folder_is_refused_and_the_first_is_not_disturbed(
    train, tmp_path, finished, compiled
):
    workdir = tmp_path / "run"
    first = launched.start(
        *TRAIN, f"--workdir={workdir}", *FLAGS, "--config.sasrec.steps=3000",
        log=tmp_path / "first", compiled=compiled,
    )  # fmt: skip
    while first.exitcode is None and not (workdir / "sasrec" / "metrics.jsonl").exists():
        time.sleep(0.01)
    train(workdir).check_refused(str(workdir), "another run is under way", str(first.pid))
    train(workdir, "--config.data.seed=3").check_refused(str(workdir), "another run is under way")
    assert first.exitcode is None
    first.kill()
    first.join()
    assert first.exitcode == -signal.SIGKILL  # and the lock is gone with it
    assert train(workdir).status == 0
    assert table(workdir) == table(finished)


# --- what a run has left --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["data/world.npz", "data/store/manifest.json", "data/store/index.parquet", "data/report.json",
     "sasrec/model/config.json", "sasrec/model/weights.safetensors"],
)  # fmt: skip
def test_a_damaged_output_stops_the_step_that_would_read_it(train, run, name):
    shutil.rmtree(run / "evaluation")
    hostile.flip_byte(run / name, 0.8)
    with hostile.untouched(run / "data"), hostile.untouched(run / "sasrec"):
        train(run).check_refused(str(run / name), "delete")
    assert not (run / "evaluation").exists()


@pytest.mark.parametrize("step", ["data", "sasrec", "evaluation"])
def test_a_step_that_was_deleted_is_made_again_and_the_table_stays(train, run, finished, step):
    shutil.rmtree(run / step)
    assert train(run).status == 0
    assert table(run) == table(finished)


def test_a_damaged_checkpoint_is_passed_over_loudly(train, run, finished):
    shutil.rmtree(run / "sasrec" / "model")
    (run / "sasrec" / "step.json").write_text(
        (run / "sasrec" / "step.json").read_text().replace('"finished": true', '"finished": false')
    )
    checkpoints = run / "sasrec" / "checkpoints"
    last = checkpoints / max(os.listdir(checkpoints), key=int)
    hostile.flip_byte(max(last.rglob("d/*"), key=lambda path: path.stat().st_size))
    found = train(run)
    if found.status:  # the damaged one was the best, which no other replaces
        found.check_refused(str(checkpoints), "remove")
        shutil.rmtree(checkpoints)
        found = train(run)
    else:
        assert any(str(last) in line and "passed over" in line for line in found.errors)
    assert "Traceback" not in found.err and found.status == 0
    assert table(run) == table(finished)


def test_raw_files_and_pictures_that_changed(train, tmp_path):
    root = tmp_path / "shop"
    (root / "images").mkdir(parents=True)
    rows = [f"u{u}\ti{(6 * u + n) % 40}\t{n}" for u in range(60) for n in range(6)]
    header = "user_id:token\titem_id:token\ttimestamp:float"
    (root / "shop.inter").write_text("\n".join([header, *rows]) + "\n")
    (root / "images" / "i1.png").write_bytes(b"one")
    flags = ("--config.data.source=atomic", f"--config.data.root={root}", "--steps=data")
    assert train(tmp_path / "run", *flags).status == 0
    assert "data is finished" in (again := train(tmp_path / "run", *flags)).err
    assert "step data runs again" not in again.err
    (root / "images" / "i1.png").write_bytes(b"two")
    assert "step data runs again, changed: files.images" in train(tmp_path / "run", *flags).err


# --- export and comparison ------------------------------------------------------------------------


def evaluate(run, tmp_path, *flags):
    return hostile.run(
        "launch/evaluate.py", "--compare", str(run), "--bootstrap=5", *flags, logs=tmp_path / "logs"
    )


@pytest.mark.parametrize("protocol", ["../../../x", "/tmp/x", "full/../../x", "sampled@1e9"])
def test_a_ranks_file_names_no_other_folder(run, tmp_path, protocol):
    source = run / "evaluation" / "ranks-sasrec-full.parquet"
    stored = pq.read_table(source)
    told = {**stored.schema.metadata, b"protocol": protocol.encode(), b"system": b"other"}
    evil = run / "evaluation" / "ranks-other-full.parquet"
    pq.write_table(stored.replace_schema_metadata(told), evil)
    with hostile.untouched(tmp_path / "run"):
        evaluate(run, tmp_path, f"--out={tmp_path / 'a' / 'b' / 'out'}").check_refused(str(evil))
    assert sorted(os.listdir(tmp_path)) == ["logs", "run"]


def test_out_that_is_a_file_or_not_given(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    evaluate(run, tmp_path, f"--out={tmp_path / 'file'}").check_refused(str(tmp_path / "file"))
    evaluate(run, tmp_path, "--out=").check_refused("--out=")
    assert (tmp_path / "file").read_text() == "mine"
    assert evaluate(run, tmp_path, f"--out={tmp_path / 'out'}").status == 0


def test_export_of_a_run_that_has_no_such_model(run, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").write_text("mine")
    found = hostile.run(
        "launch/export.py", f"--workdir={run}", f"--out={tmp_path / 'out'}", logs=tmp_path / "logs"
    )
    found.check_refused(str(run), "step sft has not finished")
    assert sorted(os.listdir(tmp_path)) == ["logs", "out.partial", "run"]
