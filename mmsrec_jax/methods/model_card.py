"""The README.md of an exported folder: what the model is, how good it is, how it is loaded.

Its head is the metadata that the Hugging Face Hub reads.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsrec_jax.runtime import disk

_SHOWN = ("recall@10", "ndcg@10", "hr@10")


@dataclasses.dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
      step: of the run, that trained the model.
      library: transformers, peft or jax, which loads the folder.
      base: Hugging Face name or folder of the base model; empty for none.
      license: as the Hub spells it; empty leaves the field out.
      data: name of the data set.
      loading: Python lines that load the model.
      pipeline: the Hub's name of the task; empty for none.
    """

    step: str
    library: str
    base: str
    license: str
    data: str
    loading: str
    pipeline: str = ""

    def text(self, table: Sequence[Mapping[str, Any]]) -> str:
        """Markdown with YAML in front. table: rows of the run's table.json; may be empty."""
        # JSON strings are YAML strings, whatever is in them.
        head: dict[str, Any] = {"license": self.license} if self.license else {}
        if _is_hub_name(self.base):
            head["base_model"] = self.base
        head["library_name"] = self.library
        if self.pipeline:
            head["pipeline_tag"] = self.pipeline
        head["tags"] = ["recommendation", "mmsrec_jax"]
        yaml = "".join(f"{name}: {json.dumps(value)}\n" for name, value in head.items())
        name = self.base if _is_hub_name(self.base) else Path(self.base).name
        base = f"\nBase model: `{name}`.\n" if name else ""
        missing = "" if self.license else "\nThe license is not set: set it before you publish.\n"
        return (
            f"---\n{yaml}---\n\n# {self.step}\n\n"
            f"Trained by step `{self.step}` of a run of mmsrec_jax on the data `{self.data}`.\n"
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
        return [dict(row) for row in json.loads(path.read_text(encoding="utf-8"))]


def _metrics(table: Sequence[Mapping[str, Any]]) -> str:
    if not table:
        return ""
    names = [name for name in _SHOWN if any(name in row for row in table)]
    head = ["system", "protocol", "users", *names]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for row in table:
        numbers = [f"{row[name]:.4f}" if name in row else "" for name in names]
        cells = [str(row["system"]), str(row["protocol"]), str(row.get("users", "")), *numbers]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n## Metrics of the run\n\n" + "\n".join(lines) + "\n"


def _is_hub_name(base: str) -> bool:
    return base.count("/") == 1 and not base.startswith((".", "/")) and not Path(base).exists()
