"""Ten kills at random moments, and SIGTERM: the same weights as without."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import grouped
import killed
import launched
import numpy as np
import pytest
import xla_flags

from mmsrec_jax.runtime import interruption

ROOT = Path(__file__).resolve().parents[2]
STEPS, KILLS = 600, 10


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    directory = tmp_path_factory.mktemp("unbroken")
    killed.run(directory, STEPS, 0.0)
    return directory


def lines(directory):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in found]


def test_ten_kills_end_in_the_same_bits(unbroken, tmp_path):
    forks = launched.context()
    draw, started_at = random.Random(0), []
    for _ in range(KILLS):
        receive, send = forks.Pipe(duplex=False)
        process = forks.Process(target=killed.run, args=(tmp_path, STEPS, 0.002, send))
        process.start()
        if draw.random() > 0.2:  # else it dies while it starts
            started_at.append(step := receive.recv())
            until = step + draw.randrange(80)
            while step < until:
                step = receive.recv()
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert started_at == sorted(started_at) and len(set(started_at)) > KILLS / 4
    killed.run(tmp_path, STEPS, 0.0)
    np.testing.assert_array_equal(np.load(tmp_path / "w.npy"), np.load(unbroken / "w.npy"))
    assert lines(tmp_path) == lines(unbroken)


def test_sigterm_saves_after_the_step_and_the_rest_is_the_same(unbroken, tmp_path, monkeypatch):
    """Also at a step where neither a checkpoint nor a line of metrics was due."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(interruption, "_asked", False)

    class Pipe:
        def send(self, step):
            if step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    interruption.watch()
    try:
        with pytest.raises(interruption.Interrupted):
            killed.run(tmp_path, STEPS, 0.0, Pipe())
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["5"]
    monkeypatch.setattr(interruption, "_asked", False)
    killed.run(tmp_path, STEPS, 0.0)
    np.testing.assert_array_equal(np.load(tmp_path / "w.npy"), np.load(unbroken / "w.npy"))
    assert lines(tmp_path) == lines(unbroken)


def test_signals_to_the_group_of_a_run_with_workers(tmp_path):
    """SIGTERM reaches the workers as well, which the main process needs until it has saved; of a
    main process that was killed they leave nothing."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": xla_flags.of_devices(1)}

    def start(until):
        process = subprocess.Popen(
            [sys.executable, grouped.__file__, tmp_path / "broken"], env=environment,
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 200
        log = tmp_path / "broken" / "metrics.jsonl"
        while not log.exists() or len(lines(log.parent)) < until:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
            time.sleep(0.02)
        return process

    process = start(until=2)
    os.killpg(process.pid, signal.SIGTERM)
    said, errors = process.communicate(timeout=200)
    assert (process.returncode, said) == (0, "stopped\n"), errors[-3000:]
    (left,) = (tmp_path / "broken" / "checkpoints").iterdir()
    assert 2 <= int(left.name) < grouped.STEPS
    process = start(until=int(left.name) + 1)
    process.kill()
    process.wait()
    with pytest.raises(ProcessLookupError):  # all of the group have ended
        for _ in range(1000):
            os.killpg(process.pid, 0)
            time.sleep(0.02)
    process.communicate()
    found = grouped.run(tmp_path / "broken", workers=2, seconds=0)
    wanted = grouped.run(tmp_path / "unbroken", workers=0, seconds=0)
    np.testing.assert_array_equal(found, wanted)
    assert lines(tmp_path / "broken") == lines(tmp_path / "unbroken")


def test_sigterm_outside_of_a_loop_stops_at_once(monkeypatch):
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(interruption, "_asked", False)
    interruption.watch()
    try:
        with pytest.raises(interruption.Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        with pytest.raises(interruption.Interrupted):
            interruption.stop_if_requested()
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_the_command_that_sigterm_names_goes_on(tmp_path):
    sizes = {
        "data.source": "toyshop", "data.toyshop.num_users": 150, "data.toyshop.num_items": 60,
        "data.toyshop.num_groups": 3, "sasrec.dim": 8, "sasrec.layers": 1, "sasrec.steps": 100000,
        "sasrec.evaluate_every": 20, "sasrec.batch_size": 8, "sasrec.patience": 100000,
    }  # fmt: skip
    arguments = ["--config=configs/base.py:sasrec", f"--workdir={tmp_path / 'a run'}"]
    arguments += [f"--config.{name}={value}" for name, value in sizes.items()]
    command = [sys.executable, "launch/train.py", *arguments]
    checkpoints = tmp_path / "a run" / "sasrec" / "checkpoints"

    def newest():
        names = [path.name for path in checkpoints.glob("*") if path.name.isdigit()]
        return max(map(int, names), default=0)

    def wait_for_a_checkpoint(after, ended):
        deadline = time.monotonic() + 300
        while newest() <= after and not ended() and time.monotonic() < deadline:
            time.sleep(0.1)

    def check(status, said):
        assert status == 0, said[-2000:]
        _, _, named = said.splitlines()[-1].partition("stopped by SIGTERM; go on with: ")
        assert shlex.split(named) == command

    log = tmp_path / "log"
    fork = launched.start("launch/train.py", *arguments, log=log)
    wait_for_a_checkpoint(0, lambda: fork.exitcode is not None)
    fork.terminate()
    fork.join(60)
    check(fork.exitcode, log.read_text())
    before = newest()
    assert before > 0
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": xla_flags.of_devices(1)},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_a_checkpoint(before, lambda: process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    check(process.returncode, said)
    assert newest() > before
