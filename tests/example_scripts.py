"""Examples as modules, for tests: a script with flags of its own, a notebook's cells."""

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

from absl import flags

FOLDER = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))


class Script:
    """One script, to be run as often as wanted; `close` takes its flags away again."""

    def __init__(self, name: str):
        path = FOLDER / f"{name}.py"
        self.flags = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', path.read_text()))
        self.names = runpy.run_path(str(path))

    def run(self, **values: Any) -> None:
        for name in self.flags:
            flags.FLAGS[name].unparse()  # of the run before
        flags.FLAGS([sys.argv[0], *(f"--{name}={value}" for name, value in values.items())])
        self.names["main"]([])

    def close(self) -> None:
        for name in self.flags:
            delattr(flags.FLAGS, name)


def notebook() -> dict[str, Any]:
    return json.loads((FOLDER / "toyshop.ipynb").read_text())


def run_notebook(workdir: Path, changes: dict[str, Any], *, alone: bool = False) -> dict[str, Any]:
    """What the cells leave behind, on a run in `workdir` whose config has these changes.

    alone: it is one of MMSRARec, and cells about MLLM-SRec are left out.
    """
    names: dict[str, Any] = {}
    for cell in notebook()["cells"]:
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"]).replace('SIZE = "small"', 'SIZE = "tiny"')
        if alone:
            source = source.replace('get_config("both")', "get_config()")
            source = re.sub("RUNS = .*", 'RUNS = {"mmsrarec": WORKDIR}', source)
            if 'RUNS["mllm_srec"]' in source:
                continue
        source = source.replace('f"runs/toyshop-{SIZE}"', repr(str(workdir)))
        source = source.replace('"full": {}', f'"full": {{}}, "tiny": {changes}')
        exec(compile(source, cell["id"], "exec"), names)
    return names
