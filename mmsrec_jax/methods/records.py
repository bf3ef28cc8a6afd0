"""Settings in the record of a run's step."""

from typing import Any


def as_dict(section: Any) -> dict[str, Any]:
    """A section of the settings as nested dicts of plain values."""
    return section.to_dict()
