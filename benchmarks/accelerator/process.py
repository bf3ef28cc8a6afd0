"""Runs one part in its own process and hands on its rows as they come."""

import ast
import contextlib
import dataclasses
import importlib.util
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
LAST_LINES = 30  # of standard error, kept as the reason of a failure
LONGEST_REASON = 4000
# Products of matrices by cuBLAS alone: else XLA compiles many Triton kernels to try for each of
# them, which takes longer than what is to be measured.
XLA_FLAGS = "--xla_gpu_enable_triton_gemm=false"


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a part ended: its state, and why where it is not done."""

    state: str
    reason: str = ""


def title_and_seconds(package: str, name: str) -> tuple[str, int]:
    """TITLE and SECONDS of a part, without what it imports."""
    spec = importlib.util.find_spec(f"{package}.{name}")
    assert spec is not None and spec.origin is not None, f"{package} has no {name}"
    found = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(Path(spec.origin).read_text()).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("TITLE", "SECONDS")
    }
    return found["TITLE"], found["SECONDS"]


def environment(seconds: float = 180.0) -> dict[str, Any]:
    """`machine.environment` of a process that has ended: this one never holds the accelerator.

    Raises:
      RuntimeError: JAX does not come up; says why.
    """
    found: dict[str, Any] = {}
    ended = _run({"part": ""}, seconds, lambda kind, value: found.update(value))
    if not found:
        raise RuntimeError(f"JAX does not come up here: {ended.reason}")
    return found


def run(
    name: str,
    *,
    package: str,
    tiny: bool,
    out: Path,
    done: frozenset[str],
    seconds: float,
    report: Callable[[str, Mapping[str, Any]], None],
) -> Ended:
    """Runs the part for at most `seconds`; a longer one is killed and what it reported stays."""
    task = {
        "part": name, "package": package, "tiny": tiny, "out": str(out), "done": sorted(done),
        "deadline": time.time() + seconds,
    }  # fmt: skip
    ends: list[str] = []

    def take(kind: str, value: Any) -> None:
        if kind == "row":
            report(*value)
        elif kind == "end":
            ends.append(value)

    ended = _run(task, seconds, take)
    if ends:
        return Ended("unfinished" if ends[0] else "done", ends[0])
    return ended


def _run(task: dict[str, Any], seconds: float, take: Callable[[str, Any], None]) -> Ended:
    deadline = time.monotonic() + seconds
    reading, writing = os.pipe()
    with tempfile.TemporaryFile("w+") as errors, _started(task, writing, errors) as process:
        os.close(writing)
        for line in _lines(reading, deadline):
            ((kind, value),) = json.loads(line).items()
            take(kind, value)
        try:
            code = process.wait(max(deadline - time.monotonic(), 0.1))
            reason = f"ended with status {code}"
        except subprocess.TimeoutExpired:
            reason = f"killed after {seconds:.0f} s"
        errors.seek(0)
        last = "\n".join(errors.read().splitlines()[-LAST_LINES:])
    return Ended("failed", f"{reason}\n{last}".strip()[-LONGEST_REASON:])


@contextlib.contextmanager
def _started(task: dict[str, Any], writing: int, errors: IO[str]) -> Iterator[subprocess.Popen]:
    """The worker; nothing of it is left afterwards."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    cache = Path(tempfile.gettempdir()) / "mmsrec_jax_compiled"
    environ = {
        # torch and JAX share the device within one part.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "HF_HUB_OFFLINE": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "XLA_FLAGS": XLA_FLAGS,
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.accelerator.worker"],
        stdin=subprocess.PIPE, stderr=errors, pass_fds=[writing], process_group=0, text=True,
        env=environ,
    )  # fmt: skip
    assert process.stdin is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(task | {"rows": writing}) + "\n")
            process.stdin.flush()
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _lines(descriptor: int, deadline: float) -> Iterator[str]:
    """Lines until the writer closes or the deadline."""
    rest = b""
    with open(descriptor, "rb", buffering=0) as source, selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0 and selector.select(left):
            if not (chunk := source.read(1 << 16)):
                return
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line.decode() for line in lines)
