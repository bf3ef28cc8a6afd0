"""The README.md of an exported folder: what the model is, how good it is, how it is loaded.

Its head is the metadata that the Hugging Face Hub reads.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsrec_jax.runtime import disk
from mmsrec_jax.runtime.printable import printable

_SHOWN = ("recall@10", "ndcg@10", "hr@10")


@dataclasses.dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
      step: of the run, that trained the model.
      library: transformers, peft or jax, which loads the folder.
      base: what the base model is called; empty for none.
      hub_base: its name on the Hugging Face Hub; empty where it has none, or none is known.
      license: as the Hub spells it; empty leaves the field out.
      data: name of the data set.
      loading: Python lines that load the model.
      pipeline: the Hub's name of the task; empty for none.
    """

    step: str
    library: str
    base: str
    hub_base: str
    license: str
    data: str
    loading: str
    pipeline: str = ""

    def text(self, table: Sequence[Mapping[str, Any]]) -> str:
        """Markdown with YAML in front. table: rows of the run's table.json; may be empty."""
        # JSON strings are YAML strings, whatever is in them.
        head: dict[str, Any] = {"license": self.license} if self.license else {}
        if self.hub_base:
            head["base_model"] = self.hub_base
        head["library_name"] = self.library
        if self.pipeline:
            head["pipeline_tag"] = self.pipeline
        head["tags"] = ["recommendation", "mmsrec_jax"]
        yaml = "".join(f"{name}: {json.dumps(value)}\n" for name, value in head.items())
        base = f"\nBase model: {_code(self.base)}.\n" if self.base else ""
        missing = "" if self.license else "\nThe license is not set: set it before you publish.\n"
        return (
            f"---\n{yaml}---\n\n# {self.step}\n\n"
            f"Trained by step `{self.step}` of a run of mmsrec_jax on the data "
            f"{_code(self.data)}.\n"
            f"{base}{missing}\n## Loading\n\n```python\n{self.loading}```\n"
            f"{_metrics(table)}"
        )


def table_of(workdir: Path) -> list[dict[str, Any]]:
    """Rows of the run's table.json; none where the run has no table yet.

    Raises:
      UserError: it is damaged.
    """
    path = workdir / "table.json"
    if not path.exists():
        return []
    with disk.readable(path, "delete it; launch/train.py writes it again"):
        rows = json.loads(path.read_text(encoding="utf-8"))
        for row in rows:
            if not all(isinstance(row[name], str) for name in ("system", "protocol")):
                raise ValueError("a system or a protocol is no text")
            if not all(isinstance(row.get(name, 0.0), int | float) for name in _SHOWN):
                raise ValueError("a metric is no number")
        return list(rows)


def _metrics(table: Sequence[Mapping[str, Any]]) -> str:
    if not table:
        return ""
    names = [name for name in _SHOWN if any(name in row for row in table)]
    head = ["system", "protocol", "users", *names]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for row in table:
        numbers = [f"{row[name]:.4f}" if name in row else "" for name in names]
        texts = [row["system"], row["protocol"], str(row.get("users", ""))]
        cells = [*map(_plain, texts), *numbers]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n## Metrics of the run\n\n" + "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*\[\]<>|!#])", r"\\\1", printable(text))


def _code(text: str) -> str:
    """The same in the font of code."""
    return f"`{printable(text).replace('`', '')}`"


def is_hub_name(name: str) -> bool:
    """Whether a name on the Hub may be so: owner/model."""
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, flags=re.ASCII))
