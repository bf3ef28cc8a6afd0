"""Runs the points of a sweep one after the other, each in a process of its own, and writes one
table, plot and page of them all.

    WORKDIR/POINT/        a usual run of `launch/train.py`
    WORKDIR/logs/POINT.log
    WORKDIR/compiled/     compiled programs, for all points
    WORKDIR/sweep.json, sweep.csv, sweep.html
"""

import contextlib
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from mmsrec_jax.data import build
from mmsrec_jax.evaluation.comparison import points as points_table
from mmsrec_jax.evaluation.comparison.points import Measured
from mmsrec_jax.methods.settings import described
from mmsrec_jax.methods.sweep import Point, Sweep
from mmsrec_jax.methods.user_texts import USERS
from mmsrec_jax.pages import document, run_folder, sweep_page
from mmsrec_jax.runtime import disk, files, lock, workdir
from mmsrec_jax.runtime.buckets import run as buckets
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.printable import shortened
from mmsrec_jax.runtime.progress import clock

_RECORD = "sweep.json"
_POLL = 5.0  # seconds


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """A sweep in a folder.

    Attributes:
      file: of the sweep, for its pages and messages.
      sweep, points: what the file says.
      workdir: of the sweep, on this machine.
      place: the same for the programs of the points: in a bucket, where it is in one.
      program: command that runs one point, `launch/train.py`'s.
      flags: of that program, for every point.
      stop_on_failure: a point that fails ends the sweep.
    """

    file: Path
    sweep: Sweep
    points: Sequence[Point]
    workdir: Path
    place: str
    program: Sequence[str]
    flags: Sequence[str] = ()
    stop_on_failure: bool = False

    def command(self, point: Point) -> list[str]:
        """What runs a point by hand: steps that an earlier point has finished are taken from it."""
        others = [p.name for p in self.points[: self.points.index(point)]]
        reuse = [f"--reuse={self.place}/{n}" for n in others if (self.workdir / n).is_dir()]
        own = f"--workdir={self.place}/{point.name}"
        return [*self.program, *point.arguments, own, *reuse, *self.flags]

    def run(self) -> tuple[str, int]:
        """Runs the points that are not finished, then writes the table and the page; returns the
        table for the screen, and how many points have failed.

        Raises:
          UserError: no point has finished, or another sweep is under way in the folder; with
            `stop_on_failure`, a point has failed.
        """
        self.workdir.mkdir(parents=True, exist_ok=True)
        with lock.only_run(self.workdir):
            seconds = _known_seconds(self.workdir)
            problems: dict[str, str] = {}
            left = [point for point in self.points if not self._is_finished(point)]
            for point in self.points:
                if point not in left:
                    logging.info("point %s is finished", point.name)
            for number, point in enumerate(left):
                logging.info("%s", self._what_is_left(left[number:], seconds))
                began = time.monotonic()
                problem = self._run_point(point)
                took = time.monotonic() - began
                if problem:
                    problems[point.name] = problem
                    logging.error("point %s failed: %s", point.name, problem)
                else:
                    seconds[point.name] = took
                    logging.info("point %s is finished (%s)", point.name, clock(took))
                self._record(seconds, problems, [])
                if problem and self.stop_on_failure:
                    raise UserError(f"stopped at point {point.name} (--stop_on_failure)")
            return self._write(seconds, problems), len(problems)

    def _run_point(self, point: Point) -> str:
        """Runs one point; why it has failed, empty if it has not."""
        folder = self.workdir / point.name
        self._wait_for_others(folder)
        buckets.refresh(folder)
        if self._is_finished(point):
            return ""
        command = self.command(point)
        log = self.workdir / "logs" / f"{point.name}.log"
        log.parent.mkdir(exist_ok=True)
        logging.info("point %s begins: %s", point.name, shlex.join(command))
        last = error = ""
        with (
            log.open("a", encoding="utf-8") as file,
            _started(command, f"{self.place}/compiled") as process,
        ):
            for line in process.stdout or ():
                file.write(line)
                file.flush()
                print(line, end="", file=sys.stderr, flush=True)
                last = line.strip() or last
                error = line.partition(" ERROR: ")[2].strip() or error
        buckets.refresh(folder)
        if process.returncode:
            return shortened(f"{error or last} (status {process.returncode}; all of it in {log})")
        if not self._is_finished(point):
            return "it was stopped before its end; the same command goes on with it"
        return ""

    def _is_finished(self, point: Point) -> bool:
        """Whether all runs of the point have finished with these settings, on the same files."""
        for name, settings in point.runs:
            folder = self.workdir / point.name / name
            if not (folder / run_folder.FILE).exists():
                return False
            found = run_folder.read(folder)
            if found.config != _as_read(described(settings)) or len(found.done) < len(found.steps):
                return False
            wanted = {"data": build.source_files(settings.data)}
            if USERS in [step.name for step in found.steps]:
                wanted[USERS] = build.user_files(settings.data)
            records = workdir.records(folder)
            if any(records[n]["config"]["files"] != _as_read(w) for n, w in wanted.items()):
                return False
        return not self._has_seeds(point) or (self.workdir / point.name / "table.json").exists()

    def _has_seeds(self, point: Point) -> bool:
        return bool(point.runs[0][0])

    def _wait_for_others(self, folder: Path) -> None:
        """A point may still run although its sweep was killed, or on another machine."""
        told = False
        while folder.is_dir() or buckets.is_copy(folder):  # of a bucket it may not be here yet
            try:
                with buckets.only_run(folder):
                    return
            except lock.HeldError as error:
                if not told:
                    logging.info("waiting: %s", error)
                told = True
                time.sleep(_POLL)

    def _what_is_left(self, left: Sequence[Point], seconds: Mapping[str, float]) -> str:
        """One line. Times are known from points that have run; the first one has run the steps that
        the others share, so that it counts only while it is the only one."""
        count = f"{len(left)} of {len(self.points)} points left"
        known = [seconds[p.name] for p in self.points[1:] if p.name in seconds]
        known = known or [seconds[p.name] for p in self.points[:1] if p.name in seconds]
        if not known:
            return count
        return f"{count}, about {clock(sum(known) / len(known) * len(left))}"

    def _write(self, seconds: Mapping[str, float], problems: Mapping[str, str]) -> str:
        measured = [
            Measured(
                point.name,
                point.settings.headline,
                tuple(self.workdir / point.name / name for name, _ in point.runs),
            )
            for point in self.points
            if point.name not in problems
        ]
        if not measured:
            raise UserError(f"{self.workdir}: no point has finished; the lines above say why")
        rows = points_table.table(measured, self.points[0].settings.evaluation.k)
        about = self._record(seconds, problems, [dataclasses.asdict(row) for row in rows])
        sets = {point.name: point.sets for point in self.points}
        files.write_text(self.workdir / "sweep.csv", points_table.as_csv(rows, sets))
        document.attempt(lambda: sweep_page.write(self.workdir, about, rows))
        failed = [f"{name} failed: {problem}" for name, problem in problems.items()]
        return "\n".join([points_table.screen(rows), *failed])

    def _record(
        self,
        seconds: Mapping[str, float],
        problems: Mapping[str, str],
        rows: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Writes `sweep.json`; returns what it says."""
        about = {
            "sweep": str(self.file),
            "config": self.sweep.config,
            "settings": dict(self.sweep.settings),
            "points": [
                {
                    "name": point.name,
                    "sets": dict(point.sets),
                    "seconds": seconds.get(point.name),
                    "problem": problems.get(point.name, ""),
                }
                for point in self.points
            ],
            "rows": list(rows),
        }
        files.write_json(self.workdir / _RECORD, about)
        return about


def _as_read(record: Mapping[str, Any]) -> dict[str, Any]:
    """What comes back from a JSON file of it."""
    return dict(json.loads(json.dumps(record)))


def _known_seconds(folder: Path) -> dict[str, float]:
    """How long points took in earlier starts."""
    path = folder / _RECORD
    if not path.exists():
        return {}
    remedy = "delete it; points that have finished are kept"
    found = disk.read_json(path, remedy)
    with disk.readable(path, remedy):
        return {p["name"]: float(p["seconds"]) for p in found["points"] if p["seconds"]}


@contextlib.contextmanager
def _started(command: Sequence[str], compiled: str) -> Iterator[subprocess.Popen[str]]:
    """The command as a process, which ends when the block does: what SIGTERM does to the sweep, it
    does to the point, which then keeps what it has.

    compiled: folder of compiled programs, where the environment names none.
    """
    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR") or compiled
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": compiled},
    )
    try:
        yield process
    except BaseException:
        process.terminate()
        print(process.communicate()[0], end="", file=sys.stderr, flush=True)
        raise
    finally:
        process.wait()
