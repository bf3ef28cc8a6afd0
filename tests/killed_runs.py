"""A run that is killed in each of its steps, and one that is not."""

import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

Start = Callable[[Path, Path], ForkServerProcess]  # workdir, folder of logs -> the run has begun
Finish = Callable[[ForkServerProcess, Path, Path], None]  # waits for it, and that it went well

LOOPS = (
    "warmup", "summarizer", "sasrec", "text_sft", "sft", "cached", "writer", "chain_sft",
    "chain_cached",
)  # fmt: skip


def under_way(directory: Path) -> bool:
    """The step has begun and left something on the way: a checkpoint if it is one that trains."""
    if directory.name in LOOPS:
        return any(path.name.isdigit() for path in directory.glob("checkpoints/*"))
    return directory.is_dir() and any(path.name != "step.json" for path in directory.iterdir())


def unbroken_and_killed(
    folder: Path, steps: Sequence[str], start: Start, finish: Finish
) -> tuple[Path, Path, list[str]]:
    """Workdirs of both, and in which of `steps` the second was killed."""
    unbroken, broken = folder / "unbroken", folder / "broken"
    finish(start(unbroken, folder), folder, unbroken)
    killed = kill_in(broken, steps, start)
    finish(start(broken, folder), folder, broken)
    return unbroken, broken, killed


def kill_in(workdir: Path, steps: Sequence[str], start: Start) -> list[str]:
    """In which of `steps` the run in `workdir` was killed; it is started anew for each of them."""
    killed = []
    for step in steps:
        process = start(workdir, workdir.parent)
        deadline = time.monotonic() + 300
        while process.exitcode is None and not under_way(workdir / step):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            killed.append(step)
    return killed
