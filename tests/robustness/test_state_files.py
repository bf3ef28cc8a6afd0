"""Damage to what a run leaves on disk, function by function: one line, nothing else is touched."""

import json
import math
import os
import shutil
import signal
import threading
from pathlib import Path

import hostile
import numpy as np
import pyarrow.parquet as pq
import pytest

from mmsrec_jax.data import build, store, toyshop
from mmsrec_jax.data.toyshop import ToyshopSettings
from mmsrec_jax.evaluation import metrics, ranking, results
from mmsrec_jax.retrieval import table
from mmsrec_jax.retrieval.similar import Neighbors
from mmsrec_jax.runtime import digests, disk, files, lock, workdir
from mmsrec_jax.runtime.errors import UserError, of_os_error
from mmsrec_jax.runtime.metrics_log import MetricsLog
from mmsrec_jax.runtime.workdir import Step, run_steps
from mmsrec_jax.sequential import registry
from mmsrec_jax.sequential.recommender import SequentialRecommender, init_params
from mmsrec_jax.sequential.sasrec import SASRecSettings

JSON = {
    "empty": b"", "half": b'{"config": {"a"', "list": b"[]", "null": b"null", "text": b'"x"',
    "number": b"7", "no object fields": b"{}", "bytes": b"\xff\xfe\x00", "zeros": b"\0" * 64,
    "deep": b"[" * 100_000, "wrong types": b'{"config": 1, "inputs": 2, "finished": "yes"}',
}  # fmt: skip


def steps(made, tables=("first",)):
    def data(folder):
        made.append("data")
        (folder / "world.npz").write_bytes(b"world")
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "deep" / "items.jsonl").write_text("1\n2\n")

    def rank(folder):
        made.append("rank")
        (folder / "table.json").write_text(json.dumps(tables[-1]))

    return [
        Step("data", data, {"seed": 0}),
        Step("middle", lambda folder: made.append("middle"), {}, ["data"]),
        Step("rank", rank, {}, ["middle"], shown=("table.json",)),
    ]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    run_steps(folder, steps([]))
    return folder


@pytest.mark.parametrize("content", JSON.values(), ids=JSON)
def test_a_damaged_record_names_itself(run, content):
    (run / "data" / "step.json").write_bytes(content)
    with hostile.untouched(run), hostile.refused("data/step.json", "delete", "launch/train.py"):
        run_steps(run, steps([]))
    with hostile.refused("data/step.json"):
        workdir.finished(run, "data")


def test_a_record_that_is_a_pipe_or_a_folder(run):
    record = run / "data" / "step.json"
    record.unlink()
    os.mkfifo(record)
    with hostile.refused("data/step.json", "no regular file"):
        run_steps(run, steps([]))
    record.unlink()
    record.mkdir()
    with hostile.refused("data/step.json"):
        run_steps(run, steps([]))


def test_a_record_changed_by_hand_is_not_believed(run):
    path = run / "data" / "step.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"config": {"seed": 1}}))
    with hostile.refused("data/step.json", "the fingerprint is not that of its content"):
        run_steps(run, steps([]))


@pytest.mark.parametrize(
    "starts",
    [
        [1],
        [{}],
        [{"seconds": 1}],
        [{"seconds": "x", "devices": 1}],
        [{"seconds": math.nan, "devices": 1}],
        [{"seconds": 1, "devices": -1}],
        [{"seconds": 1, "devices": 1, "ended": 5}],
    ],
)
def test_a_record_with_damaged_starts_names_itself(run, starts):
    path = run / "data" / "step.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"starts": starts}))
    with hostile.untouched(run), hostile.refused("data/step.json: starts is damaged", "delete"):
        run_steps(run, steps([]))


@pytest.mark.parametrize("name", ["world.npz", "deep/items.jsonl"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "pipe"])
def test_what_a_finished_step_left_is_compared_before_any_later_step_reads_it(run, name, damage):
    """Also by a step that reads it through another one."""
    shutil.rmtree(run / "rank")
    file = run / "data" / name
    if damage == "flipped":
        hostile.flip_byte(file)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
        if damage == "pipe":
            os.mkfifo(file)
    made = []
    with hostile.untouched(run), hostile.refused(str(file), "step data is finished", "delete"):
        run_steps(run, steps(made))
    assert made == []
    with hostile.refused(str(file)):
        workdir.finished(run, "data")


def test_logs_checkpoints_and_notes_of_the_user_may_come_and_go(run):
    for name in ("metrics.jsonl", "notes.txt", "tensorboard/events", "checkpoints/3/state"):
        (run / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (run / "data" / name).write_text("x")
    shutil.rmtree(run / "rank")
    made = []
    run_steps(run, steps(made))
    assert made == ["rank"]


def test_the_table_outlives_a_step_that_is_made_again(run):
    shutil.rmtree(run / "data")
    made = []
    run_steps(run, steps(made))
    assert made == ["data"] and json.loads((run / "table.json").read_text()) == "first"
    (run / "table.json").unlink()
    run_steps(run, steps(made))
    assert made == ["data"] and json.loads((run / "table.json").read_text()) == "first"


def test_the_table_of_other_settings_does_not_stay(run):
    changed = steps([], ("second",))
    changed[0] = Step("data", changed[0].run, {"seed": 1})
    run_steps(run, changed, only=["data"])
    assert not (run / "table.json").exists()
    run_steps(run, changed)
    assert json.loads((run / "table.json").read_text()) == "second"


def test_one_run_at_a_time_and_the_lock_ends_with_its_process(tmp_path, caplog):
    held, free = os.pipe()
    child = os.fork()
    if not child:
        with lock.only_run(tmp_path):
            os.write(free, b"x")
            signal.pause()
    os.read(held, 1)
    with hostile.refused(str(tmp_path), "another run is under way", f"process {child}"):
        with lock.only_run(tmp_path):
            pass
    threading.Timer(0.2, lambda: os.kill(child, 9)).start()
    with caplog.at_level("INFO", logger="absl"), lock.turn(tmp_path):  # which waits for its end
        assert os.waitpid(child, 0)[0] == child
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"in use (process {child} " in said and "waits until it is free" in said
    with lock.only_run(tmp_path):
        pass


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 9, b"[" * 4096, b'{"host": 1}', b'{"since": "x"}']
)
def test_what_stands_in_the_lock_does_not_matter(tmp_path, content):
    (tmp_path / lock.NAME).write_bytes(content)
    with lock.only_run(tmp_path):
        pass


def test_a_temporary_file_is_removed_when_the_disk_refuses(tmp_path):
    def full(partial):
        partial.write_text("half")
        raise OSError(28, "No space left on device")

    (tmp_path / "record.json").write_text("before")
    with hostile.untouched(tmp_path), pytest.raises(OSError) as raised:
        files.write(tmp_path / "record.json", full)
    line = str(of_os_error(raised.value))
    hostile.check_line(line, str(tmp_path / "record.json"), "No space left", "free some space")


def test_folders_arrive_whole_beside_what_the_user_has(tmp_path):
    for name in ("out.partial", ".out.partial", "out.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    with hostile.untouched(tmp_path), pytest.raises(ValueError):
        with disk.arriving(tmp_path / "out") as partial:
            (partial / "file").write_text("half")
            raise ValueError
    with disk.arriving(tmp_path / "out") as partial:
        assert not (tmp_path / "out").exists()
        (partial / "file").write_text("whole")
    assert sorted(os.listdir(tmp_path)) == [".out.partial", "out", "out.old", "out.partial"]
    assert (tmp_path / "out" / "file").read_text() == "whole"
    assert (tmp_path / "out").stat().st_mode & 0o777 == (
        tmp_path / "out.old"
    ).stat().st_mode & 0o777


# --- what steps leave, read directly --------------------------------------------------------------

SHOP = ToyshopSettings(num_users=30, num_items=30, num_groups=3)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop") / "data"
    folder.mkdir()
    build.build(build.DataSettings(source="toyshop", toyshop=SHOP), folder)
    return folder


def damaged(content, kind, rng):
    if kind == "cut":
        return content[: rng.integers(len(content))]
    if kind == "noise":
        return rng.bytes(len(content))
    if kind == "empty":
        return b""
    raw = bytearray(content)
    raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
    return bytes(raw)


KINDS = ("cut", "noise", "empty", "bit")


def same_or_refused(read, whole):
    """`read()` gives what it gave before the damage, or says so in one line."""
    try:
        found = read()
    except UserError as error:
        hostile.check_line(str(error))
        return False
    np.testing.assert_equal(found, whole)
    return True


def histories(folder):
    catalog, found = store.open(folder / "store")
    return [catalog.ids, catalog.has_image, found.items, found.offsets, found.timestamps]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["manifest.json", "index.parquet", "histories", "items"])
def test_a_damaged_store(shop, tmp_path, name, kind):
    rng = np.random.default_rng(0)
    folder = Path(shutil.copytree(shop, tmp_path / "data"))
    path = folder / "store" / name
    path = next(path.rglob("*array_record*")) if path.is_dir() else path
    content, whole = path.read_bytes(), histories(folder)

    def read():
        found = histories(folder)
        if name == "items":
            catalog, _ = store.open(folder / "store")
            assert [catalog[i].id for i in range(len(catalog))] == catalog.ids.tolist()
        return found

    if kind == "bit" and name == "index.parquet":  # sound for parquet: the step's record sees it
        recorded = digests.outputs(folder)
        path.write_bytes(damaged(content, kind, rng))
        assert str(path) in digests.difference(folder, recorded)
        return
    for _ in range(1 if kind == "empty" else 4):
        path.write_bytes(damaged(content, kind, rng))
        refused = not same_or_refused(read, whole)
        assert refused or kind == "bit"


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_world(shop, tmp_path, kind):
    rng = np.random.default_rng(0)
    path = Path(shutil.copy(shop / "world.npz", tmp_path))
    content = path.read_bytes()
    whole = vars(toyshop.World.load(path))
    for _ in range(4):
        path.write_bytes(damaged(content, kind, rng))
        refused = not same_or_refused(lambda: vars(toyshop.World.load(path)), whole)
        assert refused or kind == "bit"


def write_ranks(path):
    columns = (np.arange(4, dtype=np.int32) for _ in range(5))
    ranks = metrics.Ranks(*columns, np.zeros((4, 2), np.int32))
    setting = results.Setting("d", "leave_one_out", "full", "c")
    results.write(path, ranks, system="a", setting=setting, seed=0, config="")


@pytest.mark.parametrize("kind", ["cut", "noise", "empty"])
def test_damaged_neighbors_and_ranks(tmp_path, kind):
    rng = np.random.default_rng(0)
    rows, lists = np.array([[0, 1], [1, 2]]), np.zeros((2, 3), np.int32)
    table.write(tmp_path / "n.parquet", rows, Neighbors(lists, lists, lists.astype(np.float32)))
    write_ranks(tmp_path / "r.parquet")
    for name, read in {
        "n.parquet": lambda: table.read_items(tmp_path / "n.parquet", rows),
        "r.parquet": lambda: results.read(tmp_path / "r.parquet"),
    }.items():
        content = (tmp_path / name).read_bytes()
        for _ in range(4):
            (tmp_path / name).write_bytes(damaged(content, kind, rng))
            with hostile.refused(name):
                read()


@pytest.mark.parametrize(
    ("field", "value"),
    [("protocol", "../../../x"), ("protocol", "/tmp/x"), ("protocol", "full\n"),
     ("system", "a\x1b[31m"), ("system", "x" * 9999), ("seed", "1" * 5000), ("seed", "one")],
)  # fmt: skip
def test_names_in_a_ranks_file_are_data(tmp_path, field, value):
    path = tmp_path / "ranks-a-full.parquet"
    write_ranks(path)
    stored = pq.read_table(path)
    told = {k.decode(): v.decode() for k, v in stored.schema.metadata.items()} | {field: value}
    pq.write_table(stored.replace_schema_metadata(told), path)
    assert len(ranking.read_ranks(path)[0].ranks) == 4
    with hostile.refused(path.name, "delete"):
        results.read(path)


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors"])
@pytest.mark.parametrize("kind", ["cut", "noise", "empty"])
def test_a_damaged_sequential_model(tmp_path, name, kind):
    rng = np.random.default_rng(0)
    config = registry.configure(SASRecSettings(dim=8, heads=1, layers=1, length=4), 5, {})
    SequentialRecommender(config, init_params(config, 0)).save(tmp_path / "model")
    content = (tmp_path / "model" / name).read_bytes()
    for _ in range(4):
        (tmp_path / "model" / name).write_bytes(damaged(content, kind, rng))
        with hostile.refused(name, "delete"):
            SequentialRecommender.load(tmp_path / "model")
    (tmp_path / "model" / name).write_bytes(content)
    raw = json.loads((tmp_path / "model" / "config.json").read_text())
    for changes in ({"kind": "gru"}, {"kind": 3}, {"dim": "8"}, {"dim": 16}, {"dim": -1}, {"x": 1}):
        (tmp_path / "model" / "config.json").write_text(json.dumps(raw | changes))
        with hostile.refused(str(tmp_path / "model")):
            SequentialRecommender.load(tmp_path / "model")


def test_a_damaged_line_of_metrics(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n\0\0\0\n')
    with hostile.refused("metrics.jsonl", "delete the file"):
        MetricsLog(tmp_path, resume_step=1)


# --- what a step read -----------------------------------------------------------------------------


def test_other_files_under_the_same_path_are_seen(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "images" / name).write_bytes(b"picture of " + name.encode())
    (tmp_path / "x.inter").write_text("user\titem\n")
    settings = build.DataSettings(root=str(tmp_path))
    before = build.source_files(settings)
    assert build.source_files(settings) == before
    seen = [before]
    hostile.flip_byte(tmp_path / "images" / "a.jpg")  # size and time of change stay
    seen.append(build.source_files(settings))
    (tmp_path / "images" / "c.jpg").write_bytes(b"new")
    seen.append(build.source_files(settings))
    hostile.flip_byte(tmp_path / "x.inter")
    seen.append(build.source_files(settings))
    os.mkfifo(tmp_path / "images" / "d.jpg")  # is not opened
    (tmp_path / "images" / "e.jpg").symlink_to("nowhere")
    assert build.source_files(settings) == seen[-1]
    assert len({json.dumps(found) for found in seen}) == len(seen)


def test_a_change_anywhere_in_a_large_file_is_seen_by_its_time(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(digests._WHOLE_BYTES + 1)
    before = digests.of_input(path)
    with path.open("r+b") as file:
        file.seek(5_000_001)
        file.write(b"x")
    os.utime(path, ns=(0, before[1] + 1))
    assert digests.of_input(path) != before
