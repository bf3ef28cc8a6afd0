"""Records of steps that tests write or change by hand, consistent in themselves."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmsrec_jax.runtime import digests, workdir


def write(folder: Path, config: Mapping[str, Any], inputs: Mapping[str, str] | None = None) -> None:
    """Says that the step of this folder, with the files that are in it, has finished."""
    config, inputs = json.loads(json.dumps(config)), dict(inputs or {})
    record = {
        "config": config,
        "inputs": inputs,
        "fingerprint": workdir._fingerprint(folder.name, config, inputs),
        "finished": True,
        "starts": [{"devices": 1, "seconds": 1.0, "ended": "2026-11-26T22:35:01+00:00"}],
        "outputs": digests.outputs(folder),
    }
    (folder / "step.json").write_text(json.dumps(record))


def change(folder: Path, **changes: Any) -> None:
    """Puts values by dotted name, `model__path`, into the recorded config."""
    record = json.loads((folder / "step.json").read_text())
    for dotted, value in changes.items():
        *parents, name = dotted.split("__")
        section = record["config"]
        for parent in parents:
            section = section[parent]
        section[name] = value
    write(folder, record["config"], record["inputs"])
