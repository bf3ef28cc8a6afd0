"""Runs whose workdir is in a bucket: another machine goes on from what is left of a lost one."""

import contextlib
import json
import multiprocessing
import os
import signal
import threading

import bucket_run
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from mmsrec_jax import methods
from mmsrec_jax.runtime import processes, startup
from mmsrec_jax.runtime.buckets import run
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.metrics_log import MetricsLog
from mmsrec_jax.runtime.workdir import Step, run_steps


def plain(folder):
    """The files that a run leaves, without what differs from run to run."""
    names = {"texts/texts.jsonl": "", "train/w.npy": "", "train/metrics.jsonl": "time/"}
    found = {}
    for name, passing in names.items():
        content = (folder / name).read_bytes()
        if passing:
            rows = map(json.loads, content.splitlines())
            content = [{k: v for k, v in row.items() if not k.startswith(passing)} for row in rows]
        found[name] = content
    return found


def test_a_run_that_is_killed_anywhere_ends_in_the_same_bits(bucket_server, machine, tmp_path):
    """SIGKILL while the bucket gets something: half a step, a step before its marker, half a
    checkpoint. Each time another machine goes on."""
    run_steps(tmp_path / "disk", bucket_run.steps(tmp_path / "unbroken"))
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["bucket_run", "tensorboardX", "google.cloud.storage", "gcsfs"])
    asked, moments = tmp_path / "asked", (
        ("/texts/texts.jsonl", 3), ("/texts/step.json", 2), ("/checkpoints/30", 4),
        ("/checkpoints/60", 9), ("/train/step.json", 2), ("", 0),
    )  # fmt: skip
    for number, (moment, count) in enumerate(moments):
        arguments = (bucket_server.environment, tmp_path / f"machine{number}", asked)
        process = forks.Process(target=bucket_run.run, args=arguments)
        seen = []

        def kill(method, path, process=process, moment=moment, count=count, seen=seen):
            if moment and method != "GET" and moment in path:
                seen.append(path)
                if len(seen) == count:
                    process.kill()
                    return 0
            return None

        bucket_server.fault = kill
        process.start()
        process.join(120)
        assert process.exitcode == (-signal.SIGKILL if moment else 0), (moment, seen)
    machine("reader")
    with run.reading("gs://lab/run") as folder:
        assert plain(folder) == plain(tmp_path / "disk")
        starts = [
            json.loads((folder / step / "step.json").read_text())["starts"]
            for step in ("texts", "train")
        ]
    texts = len(asked.read_text().splitlines())
    assert 6 <= texts <= 8  # it went on, and did not begin again
    assert [["ended" in start for start in each] for each in starts] == [
        [False, False, True], [False, False, False, True],
    ]  # fmt: skip
    assert all(start["seconds"] >= 0 for each in starts for start in each)


def test_a_step_that_changed_moves_in_the_bucket_too(bucket_server, machine):
    def write(directory):
        assert "run/shown" not in bucket_server.names("lab")  # of the step as it was
        (directory / "x").write_text("1")
        (directory / "shown").write_text("1")
        place = run.in_bucket(directory / "weights" / "array")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("of all processes")

    for config in ({"a": 1}, {"a": 2}, {"a": 1}, {"a": 2}):
        with run.opened("gs://lab/run") as folder:
            run_steps(folder, [Step("step", write, config, shown=("shown",))])
    names = bucket_server.names("lab", "run/superseded/")
    folders = sorted({name.split("/")[2] for name in names})
    assert len(folders) == 3 and sum(name.endswith(".1") for name in folders) == 1
    assert len(names) == 12  # each with its marker
    assert bucket_server.names("lab", "run/step/") == [
        "run/step/shown", "run/step/step.json", "run/step/weights/array", "run/step/x",
    ]  # fmt: skip


def write_arrays(directory):
    """As training does: files, arrays that lie in the bucket alone, a checkpoint."""
    for name in ("model.json", "more.json"):
        (directory / name).write_text("about the arrays")
    for name in ("model/weights/d/array", "other/weights/d/array", "checkpoints/7/array"):
        place = run.in_bucket(directory / name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"content of {name}")


def refuse(directory):
    raise AssertionError("it is taken from another run")


@pytest.mark.parametrize("source", ["gs://lab/source", ""])
@pytest.mark.parametrize("target", ["gs://lab/target", ""])
def test_a_step_is_taken_from_and_to_a_bucket(bucket_server, machine, tmp_path, source, target):
    source, target = source or tmp_path / "source", target or tmp_path / "target"
    with run.opened(source) as folder:
        run_steps(folder, [Step("step", write_arrays, {"a": 1})])
    machine("another")
    bucket_server.requests.clear()
    arrays, others = threading.Barrier(2), threading.Barrier(2)
    pairs, alone = {"d/array": arrays, "/model.json": others, "/more.json": others}, []

    def wait(method, path):
        for end, both in pairs.items():
            if path.endswith(end) and (method == "POST" or path.startswith("/download/")):
                try:
                    both.wait(20)
                except threading.BrokenBarrierError:
                    alone.append(path)

    with run.only_reading(source) as other, run.opened(target) as folder:
        bucket_server.fault = wait
        run_steps(folder, [Step("step", refuse, {"a": 1})], reuse=[other])
        bucket_server.fault = lambda method, path: None
    assert not alone
    written = [r for r in bucket_server.requests if r.startswith("POST") and "step/" in r]
    if str(target).startswith("gs://"):
        arrays = ["step/model/weights/d/array", "step/other/weights/d/array"]
        kept = sorted(["step/model.json", "step/more.json", *arrays, "step/step.json"])
        assert bucket_server.names("lab", "target/") == [f"target/{name}" for name in kept]
        markers = [i for i, r in enumerate(written) if r.endswith("/step/step.json")]
        assert markers == [0, len(written) - 1]  # that it arrives, and that it is there
        found = bucket_server.objects["lab", "target/step/model/weights/d/array"].data
    else:
        found = (target / "step/model/weights/d/array").read_bytes()
        assert not (target / "step/checkpoints").exists()
    assert found == b"content of model/weights/d/array"
    machine("a third")
    with run.opened(target) as folder:  # it counts as finished, on any machine
        run_steps(folder, [Step("step", refuse, {"a": 1})])


def test_a_step_that_was_half_taken_is_taken_again(bucket_server, machine, tmp_path):
    def write(directory):
        for age, name in enumerate(("later", "first")):  # in which order they are pushed
            (directory / name).write_text(name)
            os.utime(directory / name, (1000 - age, 1000 - age))

    run_steps(tmp_path / "source", [Step("step", write, {})])

    def take():
        with run.opened("gs://lab/target") as folder:
            run_steps(folder, [Step("step", refuse, {})], reuse=[tmp_path / "source"])

    bucket_server.fault = lambda method, path: 403 if path.endswith("/later") else None
    with pytest.raises(UserError, match="target/step/later: no permission"):
        take()
    assert bucket_server.names("lab", "target/") == ["target/step/first", "target/step/step.json"]
    bucket_server.fault = lambda method, path: None
    machine("another")
    take()
    kept = ["target/step/first", "target/step/later", "target/step/step.json"]
    assert bucket_server.names("lab", "target/") == kept


def test_of_a_step_that_was_half_taken_another_finds_nothing(bucket_server, machine, tmp_path):
    run_steps(tmp_path / "source", [Step("step", write_arrays, {"a": 1})])
    bucket_server.fault = lambda method, path: 403 if path.endswith("/model.json") else None
    with pytest.raises(UserError, match="target/step/model.json: no permission"):
        with run.opened("gs://lab/target") as folder:
            run_steps(folder, [Step("step", refuse, {"a": 1})], reuse=[tmp_path / "source"])
    bucket_server.fault = lambda method, path: None
    assert "target/step/model/weights/d/array" in bucket_server.names("lab", "target/step/")

    def look(directory):
        assert os.listdir(directory) == ["step.json"]
        assert bucket_server.names("lab", "target/step/") == ["target/step/step.json"]

    machine("another")
    with run.opened("gs://lab/target") as folder:
        run_steps(folder, [Step("step", look, {"a": 2})], reuse=[tmp_path / "source"])


def test_only_the_main_process_reads_another_run(bucket_server, machine, monkeypatch):
    """The others wait for its answer: another exchange would meet theirs."""
    bucket_server.put("lab", "source/page", b"1")
    exchanged = []

    def gather(value):
        exchanged.append(value)
        return [value, value]

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "gather", gather)
    with contextlib.ExitStack() as stack:
        found = processes.from_main(lambda: methods._others(["gs://lab/source"], stack))
    assert exchanged == [{"value": found}] and len(found) == 1


def test_another_run_that_is_not_there(bucket_server, machine, tmp_path):
    for given, said in (
        ("gs://lab/none", "no run has begun here"),
        (tmp_path / "none", "--reuse="),
    ):
        with contextlib.ExitStack() as stack, pytest.raises(UserError, match=said):
            methods._others([given], stack)


def test_compiled_programs_and_tensorboard_files_arrive(bucket_server, machine, monkeypatch):
    """And a program that is there already is not compiled again."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    found = []

    def listen(event, **_):
        found.append(event.rpartition("/")[2])

    jax.monitoring.register_event_listener(listen)
    try:
        for start in ("first", "second"):
            machine(start)
            with run.opened("gs://lab/run") as workdir:
                startup.keep_compiled_programs(workdir / "compiled")
                jax.config.update(names[1], 0.0)
                reset_cache()
                found.clear()
                jax.jit(lambda x: jnp.cos(x) @ x)(np.ones((3, 3), np.float32)).block_until_ready()
                assert ("cache_hits" in found) == (start == "second")
                with MetricsLog(workdir / "sft", resume_step=0) as log:
                    log.write(1, {"loss": 0.5})
            kept = bucket_server.names("lab", "run/")
            assert any(name.startswith("run/compiled/jit_") for name in kept)
            assert any(name.startswith("run/sft/tensorboard/events.out.tfevents") for name in kept)
            assert not list(workdir.glob("compiled/jit_*"))  # in the bucket alone
    finally:
        jax.monitoring.unregister_event_listener(listen)
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)
        reset_cache()
