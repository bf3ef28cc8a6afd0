"""What a part of `measure.py` is asked, and what has been measured so far, on disk at all times."""

import dataclasses
import datetime
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.accelerator import markdown

STATES = ("done", "failed", "unfinished")
# Numbers of machines that differ in one of these do not belong into one record.
IDENTITY = ("device", "tiny", "jax", "torch")


@dataclasses.dataclass(frozen=True)
class Ask:
    """What a part shall do.

    tiny: the same code at sizes for two CPU cores.
    out: folder of the record.
    done: cases that are recorded already, to be skipped.
    report: takes the name of a case and its row of plain numbers and strings; recorded at once.
    seconds_left: until the part is ended.
    """

    tiny: bool
    out: Path
    done: frozenset[str]
    report: Callable[[str, Mapping[str, Any]], None]
    seconds_left: Callable[[], float]


class OutOfTime(Exception):
    """A part raises it when its next case would not fit: the rest is for the next call."""


class OtherMachine(Exception):
    """A record that was made elsewhere; one line with the remedy."""


def attempt(ask: Ask, case: str, measure: Callable[[], Mapping[str, Any]]) -> None:
    """Reports the row that `measure` returns, or its error; a case that is done is skipped.

    For parts in which one case can fail (a kernel that refuses a shape) and the others still count.
    """
    if case in ask.done:
        return
    try:
        row = measure()
    except OutOfTime:
        raise
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        row = {"error": f"{type(error).__name__}: {lines[0][:200]}"}
    ask.report(case, row)


class Record:
    """`accelerator.json` and `accelerator.md` of a folder, written whole after every change."""

    def __init__(self, folder: Path, environment: Mapping[str, Any]):
        """Continues the record of the folder.

        Raises:
          OtherMachine: it was made on another device, with other versions or another size.
        """
        self.json, self.markdown = folder / "accelerator.json", folder / "accelerator.md"
        self.environment = dict(environment)
        self.parts: dict[str, dict[str, Any]] = {}
        if self.json.exists():
            found = json.loads(self.json.read_text())
            self._refuse_other_machine(found["environment"])
            self.parts = found["parts"]

    def _refuse_other_machine(self, before: Mapping[str, Any]) -> None:
        for field in IDENTITY:
            if before.get(field) != self.environment.get(field):
                raise OtherMachine(
                    f"{self.json} was made with {field} {before.get(field)}, here it is "
                    f"{self.environment.get(field)}: give another --out"
                )

    def done(self, name: str) -> frozenset[str]:
        """Cases of a part that are recorded."""
        return frozenset(self.parts.get(name, {}).get("rows", {}))

    def state(self, name: str) -> str | None:
        return self.parts.get(name, {}).get("state")

    def seconds(self, name: str) -> float:
        """Spent on a part so far, in all calls."""
        return self.parts.get(name, {}).get("seconds", 0.0)

    def forget(self, name: str) -> None:
        """Measures a part from its beginning again."""
        self.parts.pop(name, None)
        self.write()

    def begin(self, name: str, title: str) -> None:
        part = self.parts.setdefault(name, {"title": title, "seconds": 0.0, "rows": {}})
        part |= {"title": title, "state": "unfinished"}
        part |= {key: self.environment[key] for key in ("commit",) if key in self.environment}
        part["date"] = datetime.datetime.now().isoformat(timespec="seconds")
        part.pop("reason", None)
        self.write()

    def add(self, name: str, case: str, row: Mapping[str, Any]) -> None:
        self.parts[name]["rows"][case] = plain(row)
        self.write()

    def end(self, name: str, state: str, seconds: float, reason: str = "") -> None:
        """reason: why it is not done."""
        assert state in STATES
        part = self.parts[name]
        part |= {"state": state, "seconds": round(part["seconds"] + seconds, 2)}
        if reason:
            part["reason"] = reason
        self.write()

    def write(self) -> None:
        found = {"environment": self.environment, "parts": self.parts}
        _write(self.json, json.dumps(found, indent=1) + "\n")
        _write(self.markdown, markdown.page(self.environment, self.parts))


def plain(row: Mapping[str, Any]) -> dict[str, str | int | float | bool | None]:
    """The row as JSON holds it: numbers of numpy, JAX and torch as Python's, NaN as text.

    Raises:
      TypeError: a value is neither a number nor text.
    """
    found: dict[str, str | int | float | bool | None] = {}
    for key, value in row.items():
        value = value.item() if hasattr(value, "item") else value
        if not isinstance(value, str | int | float | bool | None):
            raise TypeError(f"{key} is a {type(value).__name__}, neither a number nor text")
        finite = not isinstance(value, float) or math.isfinite(value)
        found[key] = value if finite else str(value)
    return found


def _write(path: Path, text: str) -> None:
    """A machine that is taken away leaves the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def say(line: str) -> None:
    """To standard output, at once."""
    print(line, flush=True)
    sys.stdout.flush()
