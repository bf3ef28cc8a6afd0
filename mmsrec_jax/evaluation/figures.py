"""Figures as files."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from mmsrec_jax.runtime import files


def write(path: Path, size: tuple[float, float], draw: Callable[[Figure], None]) -> None:
    """Writes what `draw` draws to `path` with .png and with .svg; size: inches. Equal numbers give
    equal files: text stays text, and there are no random ids and no dates."""
    with matplotlib.rc_context(
        {"svg.hashsalt": path.name, "svg.fonttype": "none", "text.parse_math": False}
    ):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        for kind, metadata in (("png", {}), ("svg", {"Date": None})):

            def save(partial: Path, kind: str = kind, metadata: dict = metadata) -> None:
                figure.savefig(partial, dpi=150, format=kind, metadata=metadata)

            files.write(path.with_name(f"{path.name}.{kind}"), save)
