"""Two processes of one run, one of which can no longer write in the middle of a step: both stop
with the reason, and the same command goes on to the unbroken end."""

import errno
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import launched
import pytest
import xla_flags
from test_state_commands import FLAGS, TRAIN

pytestmark = pytest.mark.robustness

SOURCE = Path(__file__).with_name("failing_disk.c")
LONG = ["--config.sasrec.steps=40", "--config.sasrec.evaluate_every=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of what all tests share: the compiled programs, and the library that refuses writes."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("cut")
    library = ["cc", "-shared", "-fPIC", "-O1", "-o", str(folder / "failing.so"), str(SOURCE)]
    subprocess.run(library, check=True)
    return folder


@pytest.fixture(scope="module")
def unbroken(folder):
    finish(start(folder, folder / "unbroken"))
    return folder / "unbroken"


def start(folder, workdir, who=None):
    """Two processes; of `who` the writes below `workdir` fail once there is a file `workdir`.cut"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {
        "XLA_FLAGS": xla_flags.of_devices(1), "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2",
    }  # fmt: skip
    failing = {
        "LD_PRELOAD": str(folder / "failing.so"), "FAILING_FOLDER": f"{workdir}/",
        "FAILING_WHEN": f"{workdir}.cut",
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, *TRAIN, f"--workdir={workdir}", *FLAGS, *LONG],
            cwd=launched.ROOT,
            env=shared | {"JAX_PROCESS_ID": str(index)} | (failing if index == who else {}),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip


def finish(pair):
    said = [process.communicate(timeout=300)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said[0][-2000:] + said[1][-2000:]


@pytest.mark.parametrize(
    ("who", "number"),
    [(0, errno.ENOSPC), (1, errno.ENOSPC), (0, errno.EROFS), (1, errno.EIO)],
)
def test_the_disk_of_one_is_cut_in_the_middle_of_a_step(folder, unbroken, tmp_path, who, number):
    workdir, cut = tmp_path / "run", tmp_path / "run.cut"
    pair = start(folder, workdir, who)
    try:
        while not list(workdir.glob("sasrec/checkpoints/[0-9]*")):
            assert all(process.poll() is None for process in pair)
            time.sleep(0.01)
        time.sleep(random.Random(10 * number + who).uniform(0, 0.3))
        cut.write_text(str(number))
        said = [process.communicate(timeout=120)[1] for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [2, 2], said
    for index, text in enumerate(said):
        assert "Traceback" not in text
        (error,) = (line for line in text.splitlines() if " ERROR: " in line)
        assert str(workdir) in error and os.strerror(number) in error
        assert (f"process {who} has stopped" in error) == (index != who)
    cut.unlink()
    finish(start(folder, workdir))
    assert (workdir / "table.json").read_text() == (unbroken / "table.json").read_text()
