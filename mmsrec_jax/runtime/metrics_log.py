"""Metrics of a run: one JSON object a line in `metrics.jsonl`, the same in TensorBoard and in the
trackers of the experiment."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from absl import logging

from mmsrec_jax.runtime import disk, files, processes, trackers
from mmsrec_jax.runtime.errors import UserError, first_line

RECORD = "trackers.json"
Line = tuple[int, Mapping[str, float]]  # step, values


class Sink(Protocol):
    """What gets the lines of `metrics.jsonl` too."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def close(self, *, failed: bool) -> None: ...


class MetricsLog:
    """Writes `{"step": n, name: value, ...}` lines under `directory`, and to the sinks of
    `trackers.current()`.

    A resumed run passes the step it continues from: later lines of the interrupted run are
    dropped, so that the file equals that of a run that was never interrupted, but for `time/...`.
    Trackers go on with the same run of theirs, whose id is in `trackers.json`. What the interrupted
    run sent them they do not get again; what the file has and they lack they get first.
    Of several processes the main one writes.
    """

    def __init__(self, directory: str | os.PathLike, *, resume_step: int = 0):
        self.path = Path(directory) / "metrics.jsonl"
        self._writes = processes.is_main()
        self._sinks: list[Sink] = []
        if self._writes:
            self._open(resume_step)

    def _open(self, resume_step: int) -> None:
        directory = self.path.parent
        directory.mkdir(parents=True, exist_ok=True)
        with disk.readable(self.path, "delete the file; its lines are then those from here on"):
            written = [_parsed(line) for line in _complete_lines(self.path)]
        kept = [line for line in written if line[0] <= resume_step]
        sinks = trackers.current().sinks
        if trackers.TENSORBOARD in sinks:
            self._sinks.append(_TensorBoard(directory, resume_step))
        self._sinks += _following(directory, [s for s in sinks if s in trackers.KINDS], written)
        files.write_text(self.path, "".join(_text(*line) for line in kept))
        self._file = self.path.open("a")
        for step, values in kept:
            for sink in self._sinks:
                if isinstance(sink, _Following):
                    sink.log(step, values)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line.

        Raises:
          UserError: a value named `loss` is not finite: the run has diverged.
        """
        values = {name: float(value) for name, value in values.items()}
        if self._writes:
            with disk.named(self.path):
                self._file.write(_text(step, values))
                self._file.flush()
            for sink in self._sinks:
                sink.log(step, values)
        if not math.isfinite(values.get("loss", 0.0)):
            raise UserError(
                f"{self.path}: the loss is {values['loss']} at step {step}: "
                "lower the learning rate or look at the data of this step"
            )

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writes:
            self._file.close()
            for sink in self._sinks:
                sink.close(failed=kind is not None)


class _TensorBoard:
    def __init__(self, directory: Path, resume_step: int):
        import tensorboardX

        self._writer = tensorboardX.SummaryWriter(
            str(directory / "tensorboard"), purge_step=resume_step + 1
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class _Following:
    """A tracker that has the points of `sent`, the last step of each metric, and gets later ones.

    A tracker that cannot be reached does not stop the training: it gets what it lacks with the next
    line that it takes.
    """

    def __init__(self, kind: str, tracker: trackers.Tracker, sent: Mapping[str, int]):
        self._kind, self._tracker, self._sent = kind, tracker, dict(sent)
        self._waiting: list[Line] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        new = {name: v for name, v in values.items() if step > self._sent.get(name, -1)}
        if new:
            self._sent |= dict.fromkeys(new, step)
            self._waiting.append((step, new))
            self._send()

    def _send(self) -> None:
        had_failed = len(self._waiting) > 1
        try:
            while self._waiting:
                self._tracker.log(*self._waiting[0])
                del self._waiting[0]
        except Exception as error:  # each package raises errors of its own
            if not had_failed:
                logging.warning("%s: %s; lines wait for it", self._kind, first_line(error))

    def close(self, *, failed: bool) -> None:
        self._send()
        if self._waiting:
            logging.warning(
                "%s did not take the last %d lines, from step %d on; metrics.jsonl has them",
                self._kind, len(self._waiting), self._waiting[0][0],
            )  # fmt: skip
        try:
            self._tracker.close(failed=failed)
        except Exception as error:
            logging.warning("%s: %s at the end", self._kind, first_line(error))


def _following(directory: Path, kinds: Sequence[str], written: Sequence[Line]) -> list[_Following]:
    """The trackers, open, and their runs in `trackers.json`.

    written: the lines of the file as the last process left it. It sent them to those trackers that
    it had open.
    """
    path = directory / RECORD
    if not kinds and not path.exists():
        return []
    remedy = "delete the file; trackers then begin new runs"
    record = disk.read_json(path, remedy) if path.exists() else {"runs": {}, "open": []}
    with disk.readable(path, remedy):
        runs: dict[str, dict[str, Any]] = dict(record["runs"])
        for kind in record["open"]:
            for step, values in written:
                sent = runs[kind]["sent"]
                sent |= {name: max(step, sent.get(name, -1)) for name in values}
    found = []
    for kind in kinds:
        known = runs.get(kind, {"run": None, "sent": {}})
        about = trackers.current().about(directory)
        tracker = trackers.open_tracker(kind, about, known["run"], path)
        runs[kind] = {"run": tracker.run, "sent": known["sent"]}
        found.append(_Following(kind, tracker, known["sent"]))
    files.write_json(path, {"runs": runs, "open": list(kinds)})
    return found


def _text(step: int, values: Mapping[str, float]) -> str:
    return json.dumps({"step": step, **values}) + "\n"


def _parsed(line: str) -> Line:
    values = json.loads(line)
    return values.pop("step"), values


def _complete_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    text = path.read_text()
    return text[: text.rfind("\n") + 1].splitlines()
