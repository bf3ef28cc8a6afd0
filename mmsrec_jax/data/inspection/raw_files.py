"""What is wrong with atomic files that can be read: each with its line."""

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mmsrec_jax.data import atomic
from mmsrec_jax.data.atomic_table import Table
from mmsrec_jax.data.inspection.findings import Finding, Findings, first
from mmsrec_jax.runtime.reading import shown

_FLOAT_ID = re.compile(r"\d+\.0+")
_MILLISECONDS = 1e11  # seconds until the year 5138
_DAY = 86_400.0


def check(root: Path, findings: Findings) -> None:
    """Adds what is found in the folder `root`, which `atomic.read` has read."""
    root = root.resolve()
    inter_path, item_path = atomic.find(root, "inter"), atomic.find(root, "item")
    assert inter_path is not None
    inter = Table(inter_path, required=("user_id", "item_id"))
    users, user_of_row = inter.codes("user_id")
    items, item_of_row = inter.codes("item_id")
    described = None
    if item_path is not None:
        item_table = Table(item_path, required=("item_id",))
        described = item_table.unique_ids("item_id")
        _check_ids(item_path, item_table, "item_id", described, np.arange(len(described)), findings)
    _check_ids(inter_path, inter, "user_id", users, user_of_row, findings)
    _check_ids(inter_path, inter, "item_id", items, item_of_row, findings)
    if described is not None and item_path is not None:
        _check_described(
            inter_path, inter, item_path, users, items, item_of_row, described, findings
        )
    if "timestamp" in inter.names:
        times = inter.floats("timestamp")
        _check_times(inter_path, inter, times, findings)
        _check_repeated(inter_path, inter, (times, item_of_row, user_of_row), findings)


def _check_ids(
    path: Path,
    table: Table,
    name: str,
    values: Sequence[str],
    codes: np.ndarray,
    findings: Findings,
) -> None:
    """values: the distinct ids; codes: int[rows] into them."""
    kinds: tuple[tuple[Callable[[str], bool], str, str], ...] = (
        (lambda id: id != id.strip(), "has a blank before or after it", "remove it"),
        (
            lambda id: bool(_FLOAT_ID.fullmatch(id)),
            "is a number with a point: was it read as a float?",
            "write whole numbers (pandas: dtype=str)",
        ),
    )
    for is_bad, problem, remedy in kinds:
        bad = np.array([is_bad(value) for value in values], bool)
        if not bad.any():
            continue
        _, where = np.unique(codes, return_index=True)  # first row of each id
        rows = np.sort(where[bad])
        found = [
            Finding(f"{path}:{line}", f"{name} {shown(values[codes[row]])} {problem}", remedy)
            for row, line in zip(first(rows), table.lines(first(rows)), strict=True)
        ]
        findings.several(found, len(rows), are_problems=True, kind=f"ids of {name} like that")


def _check_described(
    inter_path: Path,
    inter: Table,
    item_path: Path,
    users: Sequence[str],
    items: Sequence[str],
    item_of_row: np.ndarray,
    described: Sequence[str],
    findings: Findings,
) -> None:
    """Whether the interacted items have a row in the file of items."""
    known = set(described)
    unknown = np.array([id not in known for id in items], bool)
    if not unknown.any():
        return
    _, where = np.unique(item_of_row, return_index=True)
    rows = np.sort(where[unknown])
    [line, *_] = inter.lines(first(rows))
    what = f"item {shown(items[item_of_row[rows[0]]])} has no row in {item_path.name}"
    if unknown.mean() <= 0.5:
        finding = Finding(
            f"{inter_path}:{line}",
            f"{what}; so do {len(rows):,} of {len(items):,} items, which have no text",
            "add them, or leave them: they count as items",
        )
        findings.notes.append(finding)
        return
    swapped = sum(id in known for id in users) > len(users) / 2
    remedy = "are user_id and item_id swapped?" if swapped else "do both files use the same ids?"
    findings.problems.append(
        Finding(
            f"{inter_path}:{line}", f"{what}; so do {len(rows):,} of {len(items):,} items", remedy
        )
    )


def _check_times(path: Path, table: Table, times: np.ndarray, findings: Findings) -> None:
    if np.median(times) > _MILLISECONDS:
        [line] = table.lines([int(times.argmax())])
        findings.problems.append(
            Finding(
                f"{path}:{line}",
                f"timestamp {times.max():.0f} is no number of seconds since 1970",
                "divide milliseconds by 1000",
            )
        )
        return
    soon = time.time() + _DAY
    rows = np.flatnonzero(times > soon)
    found = [
        Finding(f"{path}:{line}", f"timestamp {times[row]:.0f} is in the future", "correct it")
        for row, line in zip(first(rows), table.lines(first(rows)), strict=True)
    ]
    findings.several(found, len(rows), are_problems=True, kind="timestamps in the future")
    rows = np.flatnonzero(times <= 0) if times.max() > _DAY else np.zeros(0, int)
    found = [
        Finding(
            f"{path}:{line}", f"timestamp {times[row]:g} is no time", "correct it or drop the row"
        )
        for row, line in zip(first(rows), table.lines(first(rows)), strict=True)
    ]
    findings.several(found, len(rows), are_problems=True, kind="timestamps of 0 or less")


def _check_repeated(
    path: Path, table: Table, columns: tuple[np.ndarray, ...], findings: Findings
) -> None:
    """Rows of the same user, item and time. columns: time, item and user of each row."""
    order = np.lexsort(columns)
    same = np.ones(max(len(order) - 1, 0), bool)
    for column in columns:
        same &= np.diff(column[order]) == 0
    rows = np.sort(order[1:][same])
    if len(rows):
        [line, *_] = table.lines(first(rows))
        findings.notes.append(
            Finding(
                f"{path}:{line}",
                f"the row stands above too (user, item and time); so do {len(rows):,} rows",
                "all but the first are dropped",
            )
        )
