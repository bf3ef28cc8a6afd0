"""Small tables of numbers, for the screen, for JSON and for a page."""

from collections.abc import Sequence
from dataclasses import dataclass


class Share(float):
    """A share between 0 and 1, shown as a percentage."""


Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows of (name, cells), a cell a column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]

    def json(self) -> dict[str, dict[str, Cell]]:
        """Row -> column -> number."""
        return {name: dict(zip(self.columns, cells, strict=True)) for name, cells in self.rows}

    def text(self) -> str:
        """Lines for the screen."""
        lines = [("", *self.columns)]
        lines += [(name, *map(shown, cells)) for name, cells in self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join([self.title, *(_aligned(line, widths) for line in lines)])


def shown(cell: Cell) -> str:
    """A cell as people read it."""
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Share):
        return f"{cell:.1%}"
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"


def share(part: float, whole: float) -> Share | None:
    """part / whole; None of nothing."""
    return Share(part / whole) if whole else None


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    )
    return "  ".join(["", first, *others]).rstrip()
