"""Two processes of one run: one is killed, and the same command goes on to the unbroken end."""

import os
import socket
import subprocess
import sys
import time

import killed_runs
import launched
import pytest
import xla_flags
from test_state_commands import FLAGS, TRAIN
from tiny_methods import METHODS

pytestmark = pytest.mark.robustness

MLLM_SREC = METHODS["mllm_srec"]
COMMANDS = {
    "sasrec": [*TRAIN, *FLAGS],
    "mllm_srec": [
        "launch/train.py", f"--config=configs/quickstart.py{MLLM_SREC.variant}",
        *(f"--config.{name}={value}" for name, value in MLLM_SREC.flags.items()),
    ],
}  # fmt: skip
KILLED = {
    "sasrec": ((1, "data"), (0, "sasrec"), (1, "evaluation")),
    "mllm_srec": tuple((at % 2, step) for at, step in enumerate(MLLM_SREC.killed, 1)),
}
BEGUN = {  # so short are the steps of the first
    "sasrec": lambda directory: (directory / "step.json").exists(),
    "mllm_srec": killed_runs.under_way,
}
TEXTS = {"sasrec": (), "mllm_srec": MLLM_SREC.texts}


def start(command, workdir, compiled):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {
        "XLA_FLAGS": xla_flags.of_devices(1), "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2",
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, *command, f"--workdir={workdir}"], cwd=launched.ROOT,
            env=shared | {"JAX_PROCESS_ID": str(index)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip


def finish(pair):
    said = [process.communicate(timeout=1200)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said[0][-2000:]


@pytest.mark.parametrize("name", ["sasrec", "mllm_srec"])
def test_one_of_two_is_killed_in_each_step(tmp_path, name):
    command, compiled = COMMANDS[name], tmp_path / "compiled"
    finish(start(command, tmp_path / "unbroken", compiled))
    broken = tmp_path / "broken"
    for who, step in KILLED[name]:
        pair = start(command, broken, compiled)
        try:
            while not BEGUN[name](broken / step):
                assert all(process.poll() is None for process in pair)
                time.sleep(0.01)
            pair[who].kill()
            for process in pair:
                process.communicate(timeout=150)
            assert pair[who].returncode == -9 and pair[1 - who].returncode != 0
        finally:
            for process in pair:
                process.kill()
    finish(start(command, broken, compiled))
    for left in ("table.json", *(f"{text}.jsonl" for text in TEXTS[name])):
        one, two = ((run / left).read_text() for run in (broken, tmp_path / "unbroken"))
        assert one == two and one, left
