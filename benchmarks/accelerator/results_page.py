"""experiment.json and experiment.md: what the runs of an experiment have given so far."""

import json
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator.back import Saved, steps

_SHOWN = {  # metric of a training step -> its column
    "time/seconds_per_step": "s a step",
    "time/tokens_per_second": "tokens/s",
    "time/mfu": "MFU",
    "time/device_gib": "GiB",
    "time/waiting_for_data": "waiting",
    "loss": "loss",
    "reward/total": "reward",
    "yes_no/positive_first": "first",
    "validation/best": "best NDCG@10",
}
_SYSTEM = ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10", "auc")
_DEVICES = re.compile(r"devices: (.*)")


class OtherExperiment(Exception):
    """A folder has the results of another experiment."""


def check(out: Path, about: Mapping[str, Any]) -> None:
    """Raises OtherExperiment when `out` has results of what is not `about`."""
    path = out / "experiment.json"
    if not path.exists():
        return
    known = json.loads(path.read_text())
    if changed := [name for name, value in about.items() if known.get(name) != value]:
        raise OtherExperiment(
            f"{path}: of another {changed[0]} ({known.get(changed[0])}); give another --out"
        )


class Page:
    """Both files, written anew whenever there is something new.

    Args:
      out: their folder, and that of log.txt.
      work: folder of the runs.
      runs: their names, in order.
      about: what was asked for.
    """

    def __init__(self, out: Path, work: Path, runs: Sequence[str], about: Mapping[str, Any]):
        self._out, self._work, self._runs, self._about = out, work, runs, dict(about)
        self._printed: set[tuple[str, str]] = set()
        self._left_out: dict[str, int] = {}
        self._states: dict[str, str] = {}

    def update(self, *, seconds: float, states: Mapping[str, str] | None = None) -> bool:
        """Writes what is new; whether a step has finished since the last call.

        seconds: that this call of experiment.py has taken.
        states: of the runs, when they have ended.
        """
        found = {run: steps(self._work / run) for run in self._runs}
        new = [
            (run, step)
            for run, records in found.items()
            for step, record in records.items()
            if record["finished"] and (run, step) not in self._printed
        ]
        for run, step in new:
            taken = found[run][step]["seconds"]
            print(f"{seconds:.0f} s: {run}/{step} is finished, {taken:.1f} s", flush=True)
        self._printed |= set(new)
        if new or states is not None:
            self._states = dict(states or {})
            self._write(self._record(found, seconds))
        return bool(new)

    def brought_back(self, saved: Saved) -> None:
        """What `back` has no room for is said once."""
        for path, size in saved.left_out.items():
            if path not in self._left_out:
                print(f"back/ has no room for {path} ({size / 2**20:.1f} MiB)", flush=True)
        self._left_out |= saved.left_out

    def _record(self, found: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        runs = {}
        for run, records in found.items():
            table = self._work / run / "table.json"
            runs[run] = {
                "steps": [self._step(run, name, record) for name, record in records.items()],
                "table": json.loads(table.read_text()) if table.exists() else None,
            }
        return {
            **self._about,
            "seconds_of_this_call": round(seconds, 1),
            "devices": self._devices(),
            "states": self._states,
            "runs": runs,
        }

    def _step(self, run: str, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
        lines = self._work / run / name / "metrics.jsonl"
        found = [json.loads(line) for line in _whole_lines(lines)]
        first: dict[str, Any] = {}
        last: dict[str, Any] = {}
        for line in found:  # validations have lines of their own
            first, last = {**line, **first}, {**last, **line}
        return {
            "step": name,
            "finished": record["finished"],
            "seconds": record.get("seconds"),
            "first": first,
            "last": last,
        }

    def _devices(self) -> str | None:
        log = self._out / "log.txt"
        lines = _DEVICES.findall(log.read_text(errors="replace")) if log.exists() else []
        return lines[-1] if lines else None

    def _write(self, record: Mapping[str, Any]) -> None:
        _replace(self._out / "experiment.json", json.dumps(record, indent=1) + "\n")
        _replace(self._out / "experiment.md", markdown(record))


def markdown(record: Mapping[str, Any]) -> str:
    """The record as tables: the steps of every run, then the systems."""
    lines = [
        f"# {record['data']}, {record['stage']}, scale {record['scale']:g}",
        "",
        f"{record['devices'] or 'no device yet'}; {record['seconds_of_this_call']:.0f} s in the "
        "last call.",
        "",
    ]
    rows = [["run", "step", "seconds", *_SHOWN.values()]]
    for run, found in record["runs"].items():
        for step in found["steps"]:
            taken = f"{step['seconds']:.1f}" if step["finished"] else "not finished"
            rows.append([run, step["step"], taken, *(_cell(step["last"].get(k)) for k in _SHOWN)])
    lines += [*_table(rows), ""]
    rows = [["protocol", "system", "seeds", "users", *_SYSTEM]]
    rows += [
        [protocol, system, str(len(of)), str(of[0]["users"]), *(_mean(of, k) for k in _SYSTEM)]
        for (protocol, system), of in systems(record["runs"]).items()
    ]
    return "\n".join([*lines, *_table(rows), ""])


def systems(runs: Mapping[str, Any]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """(protocol, system) -> the table rows of its seeds; a row that several runs have counts once
    (what needs no training is the same in all of them)."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs.values():
        for row in run["table"] or ():
            of = found.setdefault((row["protocol"], row["system"]), [])
            if all({**row, "seed": 0} != {**other, "seed": 0} for other in of):
                of.append(row)
    return dict(sorted(found.items(), key=lambda item: item[0][0]))


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [row[name] for row in rows if name in row]
    if not values:
        return ""
    spread = f" ±{statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    kept = [i for i in range(len(rows[0])) if i < 3 or any(row[i] for row in rows[1:])]
    lines = ["| " + " | ".join(row[i] for i in kept) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(kept), *lines[1:]]


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _whole_lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text.split("\n")[:-1]


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
