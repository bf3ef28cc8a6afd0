"""Folders of a bucket and their copies, against a server that answers as Google's does."""

import contextlib
import json
import os
import shutil
import stat
import threading
import time

import pytest

import mmsrec_jax
from mmsrec_jax.data import build
from mmsrec_jax.runtime import digests, startup
from mmsrec_jax.runtime.buckets import copies, given, lock, objects, run
from mmsrec_jax.runtime.buckets.mirror import Mirror
from mmsrec_jax.runtime.errors import UserError


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(objects, "_RETRY_SECONDS", 0.5)
    objects._retry.cache_clear()
    yield
    objects._retry.cache_clear()


def tree(folder):
    """The files that are not hidden, by name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {n: data for n, data in names.items() if not any(p[0] == "." for p in n.split("/"))}


def fill(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


# --- a folder and its copy ------------------------------------------------------------------------


def test_a_copy_goes_to_the_bucket_and_to_another_machine(bucket_server, tmp_path):
    first = Mirror("gs://lab/a/run", tmp_path / "first", ("weights",))
    fill(first.local, x="1", step__y="22", step__weights__z="arrays", step__empty="")
    fill(first.local, **{".hidden": "half"})
    first.push()
    assert bucket_server.names("lab") == ["a/run/step/empty", "a/run/step/y", "a/run/x"]
    bucket_server.put("lab", "a/run2/other", b"of another folder")
    second = Mirror("gs://lab/a/run/", tmp_path / "second")
    assert second.pull()
    assert tree(second.local) == {"x": b"1", "step/y": b"22", "step/empty": b""}


def test_nothing_is_read_or_written_twice(bucket_server, tmp_path):
    first = Mirror("gs://lab/run", tmp_path / "first")
    fill(first.local, x="1", step__y="22")
    first.push()
    written = [r for r in bucket_server.requests if r.startswith(("POST", "PUT"))]
    first.push()
    assert [r for r in bucket_server.requests if r.startswith(("POST", "PUT"))] == written
    second = Mirror("gs://lab/run", tmp_path / "second")
    second.pull()
    assert bucket_server.sent == 3
    second.pull()
    Mirror("gs://lab/run", tmp_path / "second").pull()
    (tmp_path / "second" / ".bucket" / "state.json").unlink()  # a start that was killed at its end
    Mirror("gs://lab/run", tmp_path / "second").pull()
    assert bucket_server.sent == 3


def test_what_differs_is_read_again_and_what_is_gone_goes(bucket_server, tmp_path):
    mirror = Mirror("gs://lab/run", tmp_path / "copy")
    for name in ("same", "shorter", "damaged", "touched", "newer", "gone/x"):
        bucket_server.put("lab", f"run/{name}", b"as it was")
    mirror.pull()
    (mirror.local / "shorter").write_bytes(b"as")
    damaged = mirror.local / "damaged"
    damaged.write_bytes(b"as it wos")
    os.utime(mirror.local / "touched")
    fill(mirror.local, mine="never pushed")
    bucket_server.put("lab", "run/newer", b"as it is!")
    del bucket_server.objects["lab", "run/gone/x"]
    bucket_server.sent = 0
    mirror.pull()
    expected = dict.fromkeys(("same", "shorter", "damaged", "touched"), b"as it was")
    assert tree(mirror.local) == expected | {"newer": b"as it is!"}
    assert not (mirror.local / "gone").exists()
    assert bucket_server.sent == 3 * 9


def test_what_was_removed_here_is_removed_there(bucket_server, tmp_path):
    mirror = Mirror("gs://lab/run", tmp_path / "copy")
    fill(mirror.local, x="1", y="2")
    mirror.push()
    (mirror.local / "x").unlink()
    mirror.push()
    assert bucket_server.names("lab") == ["run/y"]


def test_what_a_push_did_is_known_to_the_next_start(bucket_server, tmp_path):
    mirror = Mirror("gs://lab/run", tmp_path / "copy")
    for age, name in enumerate(("late", "early", "gone")):  # which are pushed from the last on
        fill(mirror.local, **{name: "1"})
        os.utime(mirror.local / name, (1000 - age, 1000 - age))
    bucket_server.fault = lambda method, path: 403 if path.endswith("/late") else None
    with pytest.raises(UserError, match="gs://lab/run/late: no permission"):
        mirror.push()
    bucket_server.fault = lambda method, path: None
    bucket_server.requests.clear()
    mirror = Mirror("gs://lab/run", tmp_path / "copy")
    mirror.push()
    assert [r.rpartition("/")[2] for r in bucket_server.requests if "POST" in r] == ["late"]
    (mirror.local / "gone").unlink()
    mirror.push()
    bucket_server.put("lab", "run/gone", b"of another machine")
    Mirror("gs://lab/run", tmp_path / "copy").push()
    assert "run/gone" in bucket_server.names("lab")


def test_what_others_clean_up_stays_in_the_bucket(bucket_server, machine):
    for name in ("page", "done/step.json", "done/a", "runs/step.json", "runs/a"):
        bucket_server.put("lab", f"run/{name}", b"1")
    all_of_it = bucket_server.names("lab")
    with run.only_reading("gs://lab/run") as folder:
        fill(folder, page="of the reader")
        shutil.rmtree(folder)
    with run.reading("gs://lab/run") as folder:
        shutil.rmtree(folder / "done")
        fill(folder, new="1")
    with run.opened("gs://lab/run") as folder:  # as a sweep has its points
        (folder / "done" / "a").unlink()
        shutil.rmtree(folder / "runs")
        with pytest.raises(UserError, match="run/runs: all its files went away, and stay in the b"):
            run.push(folder / "runs")
        fill(folder, new="2")
    assert bucket_server.names("lab") == sorted([*all_of_it, "run/new"])
    assert bucket_server.objects["lab", "run/page"].data == b"1"
    assert bucket_server.objects["lab", "run/new"].data == b"2"


def test_a_reader_writes_over_nothing_that_it_has_not_read(bucket_server, tmp_path):
    bucket_server.put("lab", "run/page", b"old")
    bucket_server.put("lab", "run/gone", b"old")
    first, second = (Mirror("gs://lab/run", tmp_path / name) for name in ("first", "second"))
    first.pull()
    second.pull()
    fill(first.local, page="of the first", gone="of the first", new="of the first", same="equal")
    first.push(only_known=True)
    fill(second.local, page="of the second", new="of the second", same="equal", other="1")
    (second.local / "gone").unlink()
    with pytest.raises(UserError, match="gs://lab/run/(page|new): another program changed it"):
        second.push(only_known=True)
    kept = {name: bucket_server.objects["lab", f"run/{name}"].data for name in ("gone", "new")}
    assert set(kept.values()) == {b"of the first"}
    assert bucket_server.objects["lab", "run/page"].data == b"of the first"
    assert bucket_server.objects["lab", "run/other"].data == b"1"
    second.pull()
    assert tree(second.local) == tree(first.local) | {"other": b"1"}
    fill(second.local, page="then")
    second.push(only_known=True)
    assert bucket_server.objects["lab", "run/page"].data == b"then"


def test_two_programs_that_read_a_run_have_copies_of_their_own(bucket_server, machine):
    bucket_server.put("lab", "run/page", b"old")
    with run.reading("gs://lab/run") as first:
        fill(first, page="of the first")
        with run.reading("gs://lab/run") as second:
            assert second != first and tree(second) == {"page": b"old"}
            fill(second, new="of the second")
        child = os.fork()
        if not child:  # another process of the machine
            try:
                run._open.clear()
                found = run._unused_copy("gs://lab/run", contextlib.ExitStack())
                os._exit(found.parent.parent != first.parent.parent or found == first)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
    assert bucket_server.objects["lab", "run/page"].data == b"of the first"
    assert bucket_server.objects["lab", "run/new"].data == b"of the second"
    with run.reading("gs://lab/run") as again:
        assert again == first


def test_the_marker_of_a_step_arrives_last_and_not_with_a_look_between(bucket_server, tmp_path):
    mirror = Mirror("gs://lab/run", tmp_path / "copy")
    fill(mirror.local, **{"step__step.json": "{}", "step__b": "1", "step__a": "2"})
    for age, name in enumerate(("a", "b", "step.json")):  # written in the other order
        os.utime(mirror.local / "step" / name, (1000 - age, 1000 - age))
    arrived = []
    bucket_server.fault = lambda method, path: arrived.append(sorted(bucket_server.objects))
    mirror.push(marked=False)
    assert bucket_server.names("lab") == ["run/step/a", "run/step/b"]
    assert arrived[-1] == [("lab", "run/step/b")]  # b is older
    bucket_server.clear()
    fresh = Mirror("gs://lab/run", tmp_path / "fresh")
    (mirror.local / "step").rename(fresh.local / "step")
    fresh.push()  # all at once
    uploads = [r.rpartition("/")[2] for r in bucket_server.requests if r.startswith("POST")]
    assert uploads == ["b", "a", "step.json"]


def test_nothing_arrives_after_a_file_that_it_builds_on_was_refused(bucket_server, tmp_path):
    mirror = Mirror("gs://lab/run", tmp_path / "copy")
    for age in range(20):
        fill(mirror.local, **{f"f{age}": "1"})
        os.utime(mirror.local / f"f{age}", (1000 - age, 1000 - age))
    bucket_server.fault = lambda method, path: 403 if path.endswith("/f19") else None
    with pytest.raises(UserError, match="gs://lab/run/f19: no permission"):
        mirror.push()
    assert [r.rpartition("/")[2] for r in bucket_server.requests if "POST" in r] == ["f19"]


def test_what_does_not_build_on_another_file_goes_at_once(bucket_server, tmp_path):
    mirror = Mirror("gs://lab/run", tmp_path / "copy")
    fill(mirror.local, **{"step__step.json": "{}", "step__b": "1", "step__a": "2"})
    both = threading.Barrier(2)

    def wait(method, path):
        if path.endswith(("/a", "/b")):
            both.wait(30)
        elif path.endswith("/step.json"):
            assert bucket_server.names("lab") == ["run/step/a", "run/step/b"]

    bucket_server.fault = wait
    mirror.push("step", at_once=True)
    assert len(bucket_server.names("lab")) == 3


def test_a_large_file_goes_on_where_it_was(bucket_server, tmp_path):
    content = os.urandom(3 << 20)
    known = bucket_server.put("lab", "run/large", content)
    mirror = Mirror("gs://lab/run", tmp_path / "copy")
    partial = mirror.local / f".large.{known.generation}.partial"
    partial.write_bytes(content[: 2 << 20])
    mirror.pull()
    assert tree(mirror.local) == {"large": content}
    assert bucket_server.sent == 1 << 20
    partial = (
        mirror.local
        / f".damaged.{bucket_server.put('lab', 'run/damaged', content).generation}.partial"
    )
    partial.write_bytes(b"other bytes")
    with pytest.raises(UserError, match="gs://lab/run/damaged: what arrived is not what"):
        mirror.pull()
    mirror.pull()
    assert tree(mirror.local)["damaged"] == content


def test_no_folder_of_the_user_becomes_a_copy(bucket_server, tmp_path):
    fill(tmp_path / "mine", x="1")
    with pytest.raises(UserError, match="holds something else; give another --local_dir"):
        Mirror("gs://lab/run", tmp_path / "mine")
    Mirror("gs://lab/run", tmp_path / "copy")
    with pytest.raises(UserError, match="is the copy of gs://lab/run and not of gs://lab/other"):
        Mirror("gs://lab/other", tmp_path / "copy")
    assert tree(tmp_path / "mine") == {"x": b"1"}


def test_a_folder_that_another_user_made_holds_no_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(copies, "_root", None)
    monkeypatch.setattr(copies.tempfile, "gettempdir", lambda: str(tmp_path))
    root = copies.copy_of("gs://lab/run", "run").parents[1]
    assert root == tmp_path / f"mmsrec_jax-{os.getuid()}" and root.stat().st_mode & 0o777 == 0o700
    root.rename(tmp_path / "elsewhere")
    root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="no folder of this user; name another by --local_dir"):
        copies.copy_of("gs://lab/run", "run")
    root.unlink()
    root.mkdir()
    of_another = os.stat_result([stat.S_IFDIR | 0o777, 0, 0, 1, os.getuid() + 1, *[0] * 5])
    monkeypatch.setattr(copies.Path, "lstat", lambda path: of_another)
    with pytest.raises(UserError, match="no folder of this user"):
        copies.copy_of("gs://lab/run", "run")


def test_names_that_leave_the_folder_are_refused(bucket_server, tmp_path):
    bucket_server.put("lab", "run/../../outside", b"x")
    with pytest.raises(UserError, match="no file can be called so"):
        Mirror("gs://lab/run", tmp_path / "deep" / "copy").pull()
    assert not (tmp_path / "outside").exists()


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["gs://", "gs:///x", "gs://Lab/x", "gs://lab//x", "gs://lab/a b"])
def test_urls_that_are_none(url):
    with pytest.raises(UserError, match="no path of a bucket; give gs://BUCKET/FOLDER"):
        objects.Objects(url)


def test_what_the_bucket_refuses_is_one_line(bucket_server, tmp_path, impatient):
    bucket_server.put("lab", "run/x", b"1")
    with pytest.raises(UserError, match="^gs://lob/run: no such bucket"):
        Mirror("gs://lob/run", tmp_path / "other").pull()
    mirror = Mirror("gs://lab/run", tmp_path / "copy")
    for status, said in (
        (403, "no permission"),
        (503, "cannot be reached"),
        (0, "cannot be reached"),
    ):
        bucket_server.fault = lambda method, path, status=status: status
        with pytest.raises(UserError, match=f"^gs://lab/run: .*{said}.*; ") as refused:
            mirror.pull()
        assert len(str(refused.value)) < 300 and "127.0.0.1" not in str(refused.value)
        fill(mirror.local, y="2")
        with pytest.raises(UserError, match=f"^gs://lab/run/y: .*{said}"):
            mirror.push()
    assert bucket_server.names("lab") == ["run/x"]


def test_a_fault_that_passes_is_tried_again(bucket_server, tmp_path):
    bucket_server.put("lab", "run/x", b"1")
    answers = [503, 0]
    bucket_server.fault = lambda method, path: answers.pop() if answers else None
    mirror = Mirror("gs://lab/run", tmp_path / "copy")
    mirror.pull()
    assert tree(mirror.local) == {"x": b"1"} and not answers


def test_without_the_extra_nothing_is_passed_over(monkeypatch, tmp_path):
    monkeypatch.setattr(objects.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://lab/compiled")
    for use in (
        lambda: given.local("gs://lab/data"),
        lambda: run.opened("gs://lab/run").__enter__(),
        lambda: startup.keep_compiled_programs(tmp_path),
    ):
        with pytest.raises(
            UserError, match=r"gs://lab/.*: the package .* pip install -e '.\[gcs\]'"
        ):
            use()


# --- one run --------------------------------------------------------------------------------------


def test_two_runs(bucket_server):
    folder = objects.Objects("gs://lab/run")
    with lock.only_run(folder):
        with pytest.raises(UserError, match=f"another run .*process {os.getpid()} on .*--workdir"):
            with lock.only_run(folder):
                raise AssertionError("two at once")
        assert bucket_server.names("lab") == ["run/run.lock"]
    assert bucket_server.names("lab") == []


def test_two_that_begin_at_the_same_moment(bucket_server):
    folder, inside = objects.Objects("gs://lab/run"), []

    def begin():
        try:
            with lock.only_run(folder):
                inside.append(time.monotonic())
                time.sleep(0.5)
        except UserError:
            pass

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(inside) == 1


@pytest.mark.parametrize("content", [b"", b"{}", b'{"host": "far", "process": 1, "since": 0}'])
def test_a_lock_that_nobody_renews_is_taken(bucket_server, content):
    bucket_server.put("lab", "run/run.lock", content)
    began = time.monotonic()
    with lock.only_run(objects.Objects("gs://lab/run")):
        assert time.monotonic() - began > 0.3
        assert (
            json.loads(bucket_server.objects["lab", "run/run.lock"].data)["process"] == os.getpid()
        )


def test_a_process_of_this_machine_that_is_dead_is_not_waited_for(bucket_server, monkeypatch):
    monkeypatch.setattr(lock, "DEAD", 1000.0)
    if not lock._place():
        pytest.skip("needs Linux")
    dead = os.fork()
    if not dead:
        os._exit(0)
    os.waitpid(dead, 0)
    about = {"process": dead, "place": lock._place()}
    bucket_server.put("lab", "run/run.lock", json.dumps(about).encode())
    with lock.only_run(objects.Objects("gs://lab/run")):
        pass
    about["place"] = "elsewhere"  # the same number there may be alive
    assert not lock._is_dead_process(json.dumps(about).encode())


def test_a_run_whose_lock_was_taken_ends(bucket_server, monkeypatch):
    monkeypatch.setattr(lock, "RENEWED", 1000.0)
    with lock.only_run(objects.Objects("gs://lab/run")):
        held = lock._Held(objects.Objects("gs://lab/run"), "--workdir")
        held.generation = bucket_server.objects["lab", "run/run.lock"].generation
        bucket_server.put("lab", "run/run.lock", b"of another")
        monkeypatch.setattr(lock, "RENEWED", 0.01)
        with pytest.raises(OSError, match="gs://lab/run/run.lock: another run took the lock"):
            held.renew_until(threading.Event())
    assert bucket_server.objects["lab", "run/run.lock"].data == b"of another"  # which keeps it


def test_a_lock_that_was_written_and_the_answer_lost_is_kept(bucket_server, impatient, monkeypatch):
    monkeypatch.setattr(
        objects, "_RETRY_SECONDS", 3.0
    )  # the write must get there on a busy machine
    held = lock._Held(objects.Objects("gs://lab/run"), "--workdir")
    held.take()
    before = held.generation

    def lost(method, path):
        """The answer to the write; what else may ask at this moment is answered."""
        if method != "POST" or not path.endswith("/run/run.lock"):
            return False
        bucket_server.fault = lambda method, path: 503
        return True

    bucket_server.lost = lost
    with pytest.raises(UserError, match="gs://lab/run/run.lock: the bucket cannot be reached"):
        held._write(held.generation)
    written = bucket_server.objects["lab", "run/run.lock"].generation
    assert written > before == held.generation  # which a waiting run sees
    bucket_server.lost, bucket_server.fault = lambda *_: False, lambda *_: None
    held._write(held.generation)
    assert held.generation >= written


# --- what a run only reads ------------------------------------------------------------------------


def test_data_are_the_same_to_every_machine(bucket_server, machine):
    for name in ("shop.inter", "shop.item", "images/a.jpg"):
        bucket_server.put("lab", f"data/{name}", name.encode())
    found = []
    for name in ("one", "other"):
        machine(name)
        folder = given.local("gs://lab/data")
        assert (folder / "images" / "a.jpg").read_bytes() == b"images/a.jpg"
        time.sleep(0.01)
        found.append((folder, digests.of_folder(folder), digests.of_folder(folder / "images")))
    assert found[0][0] != found[1][0] and found[0][1:] == found[1][1:]
    sent = bucket_server.sent
    assert given.local("gs://lab/data/shop.item").read_text() == "shop.item"
    asked = len(bucket_server.requests)
    assert given.local("gs://lab/data") == given.local("gs://lab/data/") == found[-1][0]
    assert len(bucket_server.requests) == asked and bucket_server.sent - sent < 99
    with pytest.raises(UserError, match="gs://lab/date: nothing is there"):
        given.local("gs://lab/date")
    assert str(given.local("/of/this/machine")) == "/of/this/machine"


def test_a_data_set_may_call_its_files_as_a_run_does(bucket_server, machine):
    names = ("checkpoints/a.jpg", "compiled/b.jpg", "images/superseded")
    for name in names:
        bucket_server.put("lab", f"data/{name}", b"1")
    assert set(tree(given.local("gs://lab/data"))) == set(names)
    bucket_server.put("lab", "data/table.json", b"{}")
    assert set(tree(given.local_run("gs://lab/data"))) == {"table.json"}


@pytest.mark.parametrize("is_run", [False, True])
def test_of_a_run_no_checkpoints_are_copied_to_open_its_data(
    bucket_server, machine, monkeypatch, is_run
):
    opened = []
    monkeypatch.setattr(build, "open_run", opened.append)
    bucket_server.put("lab", "it/checkpoints/a", b"1")
    if is_run:
        bucket_server.put("lab", "it/data/step.json", b"{}")
        mmsrec_jax.open_dataset("gs://lab/it")
        assert set(tree(opened[0])) == {"data/step.json"}
    else:
        with pytest.raises(UserError, match="neither it.inter nor it.inter.gz"):
            mmsrec_jax.open_dataset("gs://lab/it")
