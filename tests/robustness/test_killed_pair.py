"""Two processes of one run: one is killed, and the same command goes on to the unbroken end."""

import os
import socket
import subprocess
import sys
import time

import launched
import pytest
import xla_flags
from test_state_commands import FLAGS, TRAIN

pytestmark = pytest.mark.robustness


def start(workdir, compiled):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {
        "XLA_FLAGS": xla_flags.of_devices(1), "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2",
    }  # fmt: skip
    command = [sys.executable, *TRAIN, f"--workdir={workdir}", *FLAGS]
    return [
        subprocess.Popen(
            command, cwd=launched.ROOT, env=shared | {"JAX_PROCESS_ID": str(index)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip


def finish(pair):
    said = [process.communicate(timeout=300)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said[0][-2000:]


def test_one_of_two_is_killed_in_each_step(tmp_path):
    compiled = tmp_path / "compiled"
    finish(start(tmp_path / "unbroken", compiled))
    broken = tmp_path / "broken"
    for who, step in ((1, "data"), (0, "sasrec"), (1, "evaluation")):
        pair = start(broken, compiled)
        try:
            while not (broken / step / "step.json").exists():
                assert all(process.poll() is None for process in pair)
                time.sleep(0.01)
            pair[who].kill()
            for process in pair:
                process.wait(timeout=150)
            assert pair[who].returncode == -9 and pair[1 - who].returncode != 0
        finally:
            for process in pair:
                process.kill()
    finish(start(broken, compiled))
    tables = [(run / "table.json").read_text() for run in (broken, tmp_path / "unbroken")]
    assert tables[0] == tables[1]
