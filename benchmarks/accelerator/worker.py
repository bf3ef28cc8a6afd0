"""One part of `measure.py`, in a process of its own; without a name: what this machine is.

Reads its task, one line of JSON, from standard input, which the parent keeps open: when the parent
is gone, so is this. Rows and the end go as lines of JSON to the file descriptor of the task.
"""

import importlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.accelerator import absent
from benchmarks.accelerator.record import Ask, OutOfTime, plain


def main() -> None:
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    rows = os.fdopen(task["rows"], "w")

    def send(kind: str, value: Any) -> None:
        print(json.dumps({kind: value}), file=rows, flush=True)

    if not task["part"]:
        from benchmarks.accelerator import machine

        send("environment", plain(machine.environment()))
        return
    absent.stand_in()
    part = importlib.import_module(f"{task['package']}.{task['part']}")

    def report(case: str, row: Mapping[str, Any]) -> None:
        send("row", [case, plain(row)])

    ask = Ask(
        tiny=task["tiny"],
        out=Path(task["out"]),
        done=frozenset(task["done"]),
        report=report,
        seconds_left=lambda: task["deadline"] - time.time(),
    )
    try:
        part.run(ask)
    except OutOfTime as reason:
        send("end", f"out of time {reason}".strip())
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # a hung thread of a library must not keep a failed part
    else:
        send("end", "")
    rows.close()
    os._exit(0)


def _leave_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
