"""Commands under a budget of time: run, watched, and told to stop while they can still save."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

_LOOK_EVERY = 1.0  # seconds


@dataclasses.dataclass(frozen=True)
class Command:
    """A program to run.

    Attributes:
      name: stands before each of its lines when several run at a time.
      argv: program and arguments.
      cwd: folder it runs in.
      env: variables beside those of this process.
      log: file that gets what it prints, after what is there.
    """

    name: str
    argv: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    log: Path


class Budget:
    """Minutes of a rented machine, counted from when this is made.

    reserve: seconds of them that are kept for what comes after the commands.
    """

    def __init__(self, minutes: float, *, reserve: float):
        self._began = time.monotonic()
        self._end = self._began + 60 * minutes - reserve
        self._used_up = False

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def used_up(self) -> bool:
        return self._used_up or time.monotonic() >= self._end

    def end(self) -> None:
        """Nothing may go on: the machine is about to be taken away."""
        self._used_up = True


def run(
    commands: Sequence[Command],
    budget: Budget,
    *,
    jobs: int = 1,
    grace: float = 60.0,
    watch: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Runs `commands`, `jobs` at a time, until the budget is used up.

    Then SIGTERM goes to those that run, and SIGKILL after `grace` seconds to those that have not
    ended. SIGTERM to this process uses up the budget. After a command that failed no other begins.

    watch: called about every second.

    Returns:
      Of every command by name "finished", "stopped" (by the budget), "failed" or "not begun".
    """
    waiting, running = list(commands), dict[str, subprocess.Popen]()
    found = {command.name: "not begun" for command in commands}
    asked_at: float | None = None
    before = signal.signal(signal.SIGTERM, lambda *_: budget.end())
    try:
        while running or (waiting and not budget.used_up() and "failed" not in found.values()):
            if budget.used_up() and asked_at is None:
                asked_at = time.monotonic()
                for process in running.values():
                    process.terminate()
            if asked_at is not None and time.monotonic() > asked_at + grace:
                for process in running.values():
                    _kill(process)
            elif asked_at is None and len(running) < jobs and waiting:
                if "failed" not in found.values():
                    command = waiting.pop(0)
                    running[command.name] = _start(command, prefix=jobs > 1)
                    continue
            time.sleep(_LOOK_EVERY)
            for name, process in list(running.items()):
                if (status := process.poll()) is not None:
                    del running[name]
                    found[name] = _state(status, asked=asked_at is not None)
            watch()
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in running.values():
            _kill(process)
    return found


def _state(status: int, *, asked: bool) -> str:
    if asked and status in (0, -signal.SIGTERM, -signal.SIGKILL):
        return "stopped"
    return "failed" if status else "finished"


def _start(command: Command, *, prefix: bool) -> subprocess.Popen:
    process = subprocess.Popen(
        command.argv,
        cwd=command.cwd,
        env={**os.environ, **command.env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None
    lines = threading.Thread(
        target=_show, args=(process.stdout, command, f"{command.name}: " if prefix else "")
    )
    lines.daemon = True
    lines.start()
    return process


def _show(lines: IO[str], command: Command, prefix: str) -> None:
    command.log.parent.mkdir(parents=True, exist_ok=True)
    with command.log.open("a", encoding="utf-8") as log:
        for line in lines:
            log.write(line)
            log.flush()
            print(prefix + line, end="", flush=True, file=sys.stdout)


def _kill(process: subprocess.Popen) -> None:
    """The command and what it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
