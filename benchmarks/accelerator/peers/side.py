"""A side of a comparison in a process of its own, alone on the device while it runs."""

import dataclasses
import hashlib
import importlib
import json
import os
import time
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accelerator import absent
from benchmarks.accelerator.peers import weights
from benchmarks.accelerator.record import Ask, OutOfTime

_ENVIRONMENT = {
    # One process at a time has the GPU, so JAX may plan with nearly all of its memory.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "true",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "TOKENIZERS_PARALLELISM": "false",
}

_DONE, _LATE = "done", "late"
Rows = dict[str, Mapping[str, Any]]


class Sides:
    """Runs sides of a part one after the other and remembers their rows."""

    def __init__(self, part: str, ask: Ask):
        self._part, self._ask = part, ask
        self._failed: list[RuntimeError] = []
        self.rows: Rows = recorded(part, ask)
        if not weights.written(ask.tiny):
            self.run(write_weights)

    def run(self, side: Callable[[Ask], None], *, reserve: float = 0.0) -> bool:
        """Runs `side` with the rows made so far as its `done` -> whether it came to its end. It has
        the seconds that are left less `reserve`, and is killed after them.

        Raises:
          RuntimeError: it failed; its traceback is on standard error.
        """
        ask = self._ask
        deadline = time.time() + ask.seconds_left() - reserve
        context = get_context("spawn")
        receiving, sending = context.Pipe(duplex=False)
        name = side.__module__, side.__name__
        args = (sending, name, ask.tiny, ask.out, frozenset(self.rows), deadline)
        process = context.Process(target=_serve, args=args)
        before = {name: os.environ.get(name) for name in _ENVIRONMENT}
        os.environ |= _ENVIRONMENT
        try:
            process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                os.environ |= {} if value is None else {name: value}
        sending.close()
        ended = self._take(receiving, deadline)
        if ended == _LATE:
            process.kill()
        process.join()
        if ended not in (_DONE, _LATE):
            raise RuntimeError(
                f"{self._part}: {side.__name__} ended with status {process.exitcode}"
            )
        return ended == _DONE

    def both(
        self, ours: Callable[[Ask], None], theirs: Callable[[Ask], None], *, reserve: float
    ) -> bool:
        """Runs both sides, the second also where the first fails -> whether both came to their end.

        reserve: seconds that are kept for the second.
        """
        ended = []
        for side, kept_for_others in ((ours, reserve), (theirs, 0.0)):
            try:
                ended.append(self.run(side, reserve=kept_for_others))
            except RuntimeError as error:
                self._failed.append(error)
        return all(ended)

    def finish(self, ended: bool) -> None:
        """The end of a part, when what was made is told; ended: as from `both`.

        Raises:
          RuntimeError: of the first side that failed; or as `refuse_errors`.
          OutOfTime: a side did not come to its end.
        """
        if self._failed:
            raise self._failed[0]
        refuse_errors(self._ask, self.rows)
        if not ended:
            raise OutOfTime("before the last case")

    def report(self, case: str, row: Mapping[str, Any]) -> None:
        self.rows[case] = row
        self._ask.report(case, row)

    def _take(self, receiving: Connection, deadline: float) -> str:
        """Reports rows until the end, which it returns."""
        while receiving.poll(max(deadline - time.time(), 0)):
            try:
                case, row = receiving.recv()
            except EOFError:
                return ""
            if row is None:
                return case
            self.report(case, row)
        return _LATE


def recorded(part: str, ask: Ask) -> Rows:
    """Rows of a part that calls before this one measured."""
    record = ask.out / "accelerator.json"
    parts = json.loads(record.read_text())["parts"] if record.exists() else {}
    rows = parts.get(part, {}).get("rows", {})
    return {case: row for case, row in rows.items() if case in ask.done}


def _serve(
    sending: Connection,
    side: tuple[str, str],
    tiny: bool,
    out: Path,
    done: frozenset[str],
    deadline: float,
) -> None:
    """side: its module, which may import what is absent here, and its name."""
    ask = Ask(
        tiny=tiny, out=out, done=done,
        report=lambda case, row: sending.send((case, dict(row))),
        seconds_left=lambda: deadline - time.time(),
    )  # fmt: skip
    absent.stand_in()
    module, name = side
    try:
        getattr(importlib.import_module(module), name)(ask)
    except OutOfTime:
        sending.send((_LATE, None))
    else:
        sending.send((_DONE, None))


def write_weights(ask: Ask) -> None:
    """A side that writes the weights of both."""
    weights.write(ask.tiny)


def need_agreement(what: str, found: float, expected: float, tolerance: float) -> None:
    """Raises ValueError, with which a case is recorded as an error, so that no wrong result counts
    as a fast one."""
    if not abs(found - expected) <= tolerance:  # NaN is another one too
        raise ValueError(f"{what} {found:.6g} instead of {expected:.6g}")


def refuse_errors(ask: Ask, rows: Rows) -> None:
    """Raises RuntimeError in the tiny run when a case failed; on a GPU it may lack memory."""
    failed = {case: row["error"] for case, row in rows.items() if "error" in row}
    if ask.tiny and failed:
        raise RuntimeError(f"cases failed: {failed}")


def keep(ask: Ask, name: str, **arrays: np.ndarray) -> None:
    """Leaves arrays for the other side and for the comparison."""
    folder = _folder(ask)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{name}.npz"
    np.savez(partial, **arrays)  # type: ignore[arg-type]  # numpy types allow_pickle here
    partial.replace(folder / f"{name}.npz")


def _folder(ask: Ask) -> Path:
    """Beside the weights: a rented machine gives back a few files of `out`."""
    digest = hashlib.sha256(str(ask.out.resolve()).encode()).hexdigest()[:8]
    return weights.directory(ask.tiny).parent / f"mmsrec_jax_peers_{digest}"


def kept(ask: Ask, name: str) -> dict[str, np.ndarray] | None:
    """What a side left under this name; None where it did not come so far."""
    path = _folder(ask) / f"{name}.npz"
    if not path.exists():
        return None
    with np.load(path) as arrays:
        return dict(arrays)


@dataclasses.dataclass(frozen=True)
class Best:
    """The fastest of some cases."""

    case: str
    seconds: float


def best(rows: Rows, prefix: str) -> Best | None:
    """Of the cases that begin so and were measured."""
    found = [
        Best(case, row["seconds"])
        for case, row in rows.items()
        if case.startswith(prefix) and "seconds" in row
    ]
    return min(found, key=lambda each: each.seconds, default=None)


def compare_speed(sides: Sides, case: str, ours: str, theirs: str) -> None:
    """Reports how many times faster the best of our cases is than the best of theirs; nothing when
    one side has none.

    ours, theirs: beginnings of their cases.
    """
    mine, other = best(sides.rows, ours), best(sides.rows, theirs)
    if mine is None or other is None or case in sides.rows:
        return
    row = {"ratio": other.seconds / mine.seconds, "ours": mine.case, "theirs": other.case}
    sides.report(case, row)
