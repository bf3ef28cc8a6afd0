"""The record of `measure.py` as a page of tables."""

from collections.abc import Mapping
from typing import Any


def page(environment: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> str:
    """What it was measured with, and a table per part."""
    about = [f"- {key}: {_cell(value)}" for key, value in environment.items()]
    sections = [part(name, found) for name, found in parts.items()]
    return "\n".join(["# Measured on one accelerator", "", *about, "", *sections])


def part(name: str, found: Mapping[str, Any]) -> str:
    """One part: its state where it is not done, and its rows."""
    lines = [f"## {found['title']}", ""]
    state = "" if found["state"] == "done" else f", **{found['state']}**"
    lines += [f"`{name}`, {found['seconds']:.0f} s, {found['date']}{state}", ""]
    if found.get("reason"):
        lines += ["```", found["reason"], "```", ""]
    return "\n".join([*lines, *table(found["rows"]), ""])


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of a table with one row per case; a column for every key that a case has."""
    if not rows:
        return ["no case is measured yet"]
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = [_line(["case", *columns]), _line(["---"] * (len(columns) + 1))]
    for case, row in rows.items():
        lines.append(_line([case, *(_cell(row.get(column)) for column in columns)]))
    return lines


def row(values: Mapping[str, Any]) -> str:
    """The values in one line of text."""
    return ", ".join(f"{key} {_cell(value)}" for key, value in values.items() if value is not None)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def _cell(value: Any) -> str:
    """Four digits of a fraction, all of a whole number."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
