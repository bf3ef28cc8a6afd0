"""What was read, dropped and kept on the way from raw files to a store: for the screen and JSON."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from mmsrec_jax.data.records import Catalog, Histories, Split
from mmsrec_jax.data.store import Written

_SHOWN = 10  # corrupt images named on the screen; JSON has all


@dataclass(frozen=True)
class Dropped:
    """What one filter took away."""

    why: str
    users: int
    items: int
    interactions: int


@dataclass
class Report:
    """Filled step by step by whoever prepares the data.

    read, stored: counts; density is interactions / (users * items), lengths those of histories.
    notes: what was noticed but not dropped, with a count. coverage: field -> items that have it.
    corrupt_images: (file or item, reason).
    """

    source: str
    read: dict[str, float] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    stored: dict[str, float] = field(default_factory=dict)
    coverage: dict[str, int] = field(default_factory=dict)
    image_share_of_interactions: float = 0.0
    corrupt_images: list[tuple[str, str]] = field(default_factory=list)
    targets: dict[str, int] = field(default_factory=dict)
    fingerprint: str = ""

    def step(self, why: str, before: Histories, after: Histories) -> Histories:
        """Records what a filter dropped; returns `after`."""
        self.dropped.append(
            Dropped(
                why,
                users=len(before) - len(after),
                items=len(np.unique(before.items)) - len(np.unique(after.items)),
                interactions=len(before.items) - len(after.items),
            )
        )
        return after

    def note(self, what: str, count: int) -> None:
        """Records something counted that dropped nothing; zero is not worth a line."""
        if count:
            self.notes[what] = int(count)

    def finish(self, catalog: Catalog, histories: Histories, written: Written) -> None:
        """Records what is in the store."""
        self.stored = describe(histories, len(catalog))
        self.coverage = {
            **{f"text {name}": count for name, count in written.text.items()},
            **{f"attribute {name}": count for name, count in written.attributes.items()},
            "category": written.categories,
            "image": written.images,
        }
        if len(histories.items):
            share = catalog.has_image[histories.items].mean()
            self.image_share_of_interactions = float(share)
        self.corrupt_images = list(written.corrupt_images)
        self.fingerprint = written.fingerprint

    def split(self, split: Split) -> None:
        """Records how many targets each part has."""
        for part in ("train", "validation", "test"):
            self.targets[part] = len(getattr(split, part))
        for what, count in split.counts.items():
            self.note(f"{split.kind}: {what}", count)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    def table(self) -> str:
        """Lines for the screen."""
        lines = [f"data: {self.source}"]
        header = ("", "users", "items", "interactions", "density", "min/median/mean/max length")
        rows = [header, ("read", *_cells(self.read))]
        rows += [
            (f"- {d.why}", f"{d.users:,}", f"{d.items:,}", f"{d.interactions:,}", "", "")
            for d in self.dropped
        ]
        if self.stored:
            rows.append(("stored", *_cells(self.stored)))
        widths = [max(len(row[c]) for row in rows) for c in range(len(header))]
        for name, *cells in rows:
            aligned = (cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True))
            lines.append(f"  {name.ljust(widths[0])}  {'  '.join(aligned)}".rstrip())
        for name, count in self.coverage.items():
            share = count / max(self.stored["items"], 1)
            line = f"  {name}: {count:,} items ({share:.1%})"
            if name == "image":
                line += f", {self.image_share_of_interactions:.1%} of the interactions"
            lines.append(line)
        for part, count in self.targets.items():
            lines.append(f"  {part} targets: {count:,}")
        for what, count in self.notes.items():
            lines.append(f"  note: {count:,} {what}")
        if self.corrupt_images:
            lines.append(f"  corrupt images, left out: {len(self.corrupt_images):,}")
            lines += [f"    {name}: {reason}" for name, reason in self.corrupt_images[:_SHOWN]]
            if len(self.corrupt_images) > _SHOWN:
                lines.append(f"    ... and {len(self.corrupt_images) - _SHOWN:,} more")
        return "\n".join(lines)


def describe(histories: Histories, items: int) -> dict[str, float]:
    """Users, items, interactions, density, and min, median, mean and max history length."""
    return describe_lengths(histories.lengths, items)


def describe_lengths(lengths: np.ndarray, items: int) -> dict[str, float]:
    """The same of int[U], how long the histories are."""
    users, total = len(lengths), int(lengths.sum())
    lengths = lengths if users else np.zeros(1, np.int64)
    return {
        "users": users,
        "items": items,
        "interactions": total,
        "density": total / max(users * items, 1),
        "length_min": int(lengths.min()),
        "length_median": float(np.median(lengths)),
        "length_mean": float(lengths.mean()),
        "length_max": int(lengths.max()),
    }


def _cells(counts: dict[str, float]) -> tuple[str, ...]:
    return (
        f"{counts['users']:,}",
        f"{counts['items']:,}",
        f"{counts['interactions']:,}",
        f"{counts['density']:.3%}",
        f"{counts['length_min']:,} / {counts['length_median']:g} / "
        f"{counts['length_mean']:.1f} / {counts['length_max']:,}",
    )
