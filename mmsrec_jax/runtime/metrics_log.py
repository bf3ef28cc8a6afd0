"""Metrics of a run: one JSON object a line in `metrics.jsonl`, the same in TensorBoard."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import tensorboardX

from mmsrec_jax.runtime import disk, files, processes
from mmsrec_jax.runtime.errors import UserError


class MetricsLog:
    """Writes `{"step": n, name: value, ...}` lines under `directory`.

    A resumed run passes the step it continues from: later lines of the interrupted run are
    dropped, so that the file equals that of a run that was never interrupted, but for `time/...`.
    Of several processes the main one writes.
    """

    def __init__(self, directory: str | os.PathLike, *, resume_step: int = 0):
        self.path = Path(directory) / "metrics.jsonl"
        self._writes = processes.is_main()
        if self._writes:
            self._open(resume_step)

    def _open(self, resume_step: int) -> None:
        directory = self.path.parent
        directory.mkdir(parents=True, exist_ok=True)
        with disk.readable(self.path, "delete the file; its lines are then those from here on"):
            kept = [
                line
                for line in _complete_lines(self.path)
                if json.loads(line)["step"] <= resume_step
            ]
        files.write_text(self.path, "".join(line + "\n" for line in kept))
        self._file = self.path.open("a")
        self._tensorboard = tensorboardX.SummaryWriter(
            str(directory / "tensorboard"), purge_step=resume_step + 1
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line.

        Raises:
          UserError: a value named `loss` is not finite: the run has diverged.
        """
        values = {name: float(value) for name, value in values.items()}
        if self._writes:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        if not math.isfinite(values.get("loss", 0.0)):
            raise UserError(
                f"{self.path}: the loss is {values['loss']} at step {step}: "
                "lower the learning rate or look at the data of this step"
            )

    def close(self) -> None:
        if self._writes:
            self._file.close()
            self._tensorboard.close()


def _complete_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    text = path.read_text()
    return text[: text.rfind("\n") + 1].splitlines()
