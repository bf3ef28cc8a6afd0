"""Metrics that docs/metrics.md explains, and those that a run logged."""

import json
import re
from pathlib import Path

_PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"


def explained() -> set[str]:
    """Names in the first column of the page's tables."""
    return set(re.findall(r"^\| `([^`]+)` \|", _PAGE.read_text(), flags=re.M))


def logged(directory: Path) -> set[str]:
    """Names in every metrics.jsonl under `directory`."""
    lines = [
        line for path in directory.rglob("metrics.jsonl") for line in path.read_text().splitlines()
    ]
    return {name for line in lines for name in json.loads(line)}
