"""Of several processes one fails: the others say which and why, and stop within seconds."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("failing_process.py")


def start(index, *arguments, port):
    """Process `index` of two."""
    environment = os.environ | {
        "PYTHONPATH": str(SCRIPT.parents[2]),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(index),
    }
    return subprocess.Popen(
        [sys.executable, SCRIPT, *arguments], env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run(how, who, timeout):
    """(status, standard error, seconds after which it ended) of each of two processes."""
    port = free_port()
    pair = [start(index, f"--how={how}", f"--who={who}", port=port) for index in range(2)]
    try:
        begun, ended = time.monotonic(), [0.0, 0.0]
        while not all(ended):
            assert time.monotonic() < begun + timeout, "a process waits for one that has failed"
            for index, process in enumerate(pair):
                if not ended[index] and process.poll() is not None:
                    ended[index] = time.monotonic()
            time.sleep(0.05)
    finally:
        for process in pair:
            process.kill()
    return [
        (process.returncode, process.stderr.read(), at)
        for process, at in zip(pair, ended, strict=True)
    ]


@pytest.mark.parametrize(
    ("how", "who", "reason", "status"),
    [
        pytest.param("fault", 1, "a fault", 1, marks=pytest.mark.robustness),
        pytest.param("user", 0, "data.inter, row 3: no number", 2, marks=pytest.mark.robustness),
        ("disk", 1, "/shared/metrics.jsonl: No space left on device; free some space", 2),
    ],
)
def test_the_others_stop_and_say_why(how, who, reason, status):
    found = run(how, who, timeout=90)
    assert [code for code, _, _ in found] == [status] * 2
    failed, other = found[who], found[1 - who]
    assert reason in failed[1]
    line = f"process {who} has stopped, and this one stops with it: {reason}"
    assert sum(line in said for said in other[1].splitlines()) == 1
    assert abs(failed[2] - other[2]) < 15
    assert "Traceback" not in other[1]


@pytest.mark.robustness
def test_what_the_main_one_cannot_do_is_every_process_own_error():
    for code, said, _ in run("main", 9, timeout=90):
        assert code == 2 and said.count("ERROR: /nowhere/at/all: No such file") == 1
        assert "Traceback" not in said


@pytest.mark.robustness
def test_the_watch_is_over_with_the_run():
    assert [(code, said) for code, said, _ in run("well", 9, timeout=90)] == [(0, "")] * 2


@pytest.mark.robustness
@pytest.mark.parametrize("who", [0, 1])
def test_the_others_of_one_that_is_killed_stop_too(who):
    found = run("kill", who, timeout=150)
    assert found[who][0] == -9 and found[1 - who][0] != 0


@pytest.mark.parametrize("index", [0, pytest.param(1, marks=pytest.mark.robustness)])
def test_a_process_that_the_others_never_join_says_so(index):
    port = free_port()
    process = start(index, "--how=well", "--join_seconds=2", port=port)
    try:
        said = process.communicate(timeout=90)[1]
    finally:
        process.kill()
    assert process.returncode == 2
    *_, error = said.splitlines()
    assert f"not all of 2 processes at 127.0.0.1:{port} came within 2 s" in error
    assert error.count("ERROR: ") == said.count("ERROR: ") == 1 and "F1" not in said
