"""Programs of launch/ in forks of one process that has imported what they need.

An import of jax and of the methods takes longer than many a test of a command. `run` gives the same
as a process of its own: the program as `__main__`, its arguments, its exit status and its output.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from ml_collections import config_flags  # noqa: F401 for the forks

from mmsrec_jax import methods

ROOT = Path(__file__).resolve().parents[1]
methods.find("mmsrarec")  # imports all of them


def context() -> ForkServerContext:
    """Starts the process that forks, unless it runs."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["launched"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        multiprocessing.forkserver.ensure_running()
    return forks


def run(program: str, *arguments: str, log: Path, timeout: float = 120) -> tuple[int, str]:
    """(exit status, standard output and error).

    Args:
      program: a path from the root of the repository, such as launch/train.py.
      log: file that the output goes through.
    """
    process = context().Process(target=_become, args=(program, arguments, log))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"{program} still runs after {timeout:g} s: {log.read_text()[-3000:]}")
    return process.exitcode, log.read_text()


def _become(program: str, arguments: tuple[str, ...], log: Path) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(ROOT)
    os.environ["XLA_FLAGS"] = ""  # one device, as a user has
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")
