"""A run that is killed in each of its steps, and one that is not."""

import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

Start = Callable[[Path, Path], ForkServerProcess]  # workdir, folder of logs -> the run has begun
Finish = Callable[[ForkServerProcess, Path, Path], None]  # waits for it, and that it went well


def unbroken_and_killed(
    folder: Path, steps: Sequence[str], start: Start, finish: Finish, begun: Callable[[Path], bool]
) -> tuple[Path, Path, list[str]]:
    """Workdirs of both, and in which of `steps` the second was killed.

    begun: whether the step with this folder has left something on the way.
    """
    unbroken, broken = folder / "unbroken", folder / "broken"
    finish(start(unbroken, folder), folder, unbroken)
    killed = kill_in(broken, steps, start, begun)
    finish(start(broken, folder), folder, broken)
    return unbroken, broken, killed


def kill_in(
    workdir: Path, steps: Sequence[str], start: Start, begun: Callable[[Path], bool]
) -> list[str]:
    """In which of `steps` the run in `workdir` was killed; it is started anew for each of them."""
    killed = []
    for step in steps:
        process = start(workdir, workdir.parent)
        deadline = time.monotonic() + 300
        while process.exitcode is None and not begun(workdir / step):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            killed.append(step)
    return killed
