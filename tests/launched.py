"""Programs of launch/ in forks of one process that has imported what they need.

An import of jax and of the methods takes longer than many a test of a command. `run` gives the same
as a process of its own: the program as `__main__`, its arguments, its exit status and its output.
"""

import gc
import multiprocessing
import multiprocessing.forkserver
import os
import resource
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import jax
import pytest
import xla_flags
from ml_collections import config_flags  # noqa: F401 for the forks

from mmsrec_jax import methods

ROOT = Path(__file__).resolve().parents[1]
methods.find("mmsrarec")  # imports all of them
gc.set_threshold(50_000, 20, 20)  # in forks, as conftest.py has it
gc.freeze()


def context() -> ForkServerContext:
    """Starts the process that forks, unless it runs."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["launched"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        multiprocessing.forkserver.ensure_running()
    return forks


def start(
    program: str,
    *arguments: str,
    log: Path,
    errors: Path | None = None,
    compiled: Path | None = None,
    cwd: Path = ROOT,
    limits: Sequence[tuple[int, int]] = (),
    variables: Mapping[str, str] | None = None,
) -> ForkServerProcess:
    """The program as a process that has begun.

    Args:
      program: a path from the root of the repository, such as launch/train.py.
      log: file that standard output and error are added to.
      errors: another file for standard error.
      compiled: folder of compiled programs that several starts share.
      cwd: the folder it starts in.
      limits: (resource, value) pairs of `resource.setrlimit`.
      variables: of the environment.
    """
    cache = {} if compiled is None else {"JAX_COMPILATION_CACHE_DIR": str(compiled)}
    environment = {**(variables or {}), **cache}
    process = context().Process(
        target=_become, args=(program, arguments, log, errors or log, cwd, limits, environment)
    )
    process.start()
    return process


def run(
    program: str,
    *arguments: str,
    log: Path,
    timeout: float = 120,
    variables: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """(exit status, standard output and error); arguments as in `start`."""
    process = start(program, *arguments, log=log, variables=variables)
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"{program} still runs after {timeout:g} s: {log.read_text()[-3000:]}")
    return process.exitcode, log.read_text()


def _become(
    program: str,
    arguments: tuple[str, ...],
    log: Path,
    errors: Path,
    cwd: Path,
    limits: Sequence[tuple[int, int]],
    variables: Mapping[str, str],
) -> None:
    for number, file in ((1, log), (2, errors)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(cwd)
    for kind, value in limits:
        resource.setrlimit(kind, (value, value))
    os.environ |= {"XLA_FLAGS": xla_flags.of_devices(1), **variables}  # one device, as a user has
    if directory := variables.get("JAX_COMPILATION_CACHE_DIR"):  # which jax read when imported
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    sys.argv = [str(ROOT / program), *arguments]
    sys.orig_argv = [sys.executable, program, *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")
