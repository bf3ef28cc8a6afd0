"""Writes docs/configuration.md from the settings classes.

python docs/make_configuration.py
"""

import inspect
from pathlib import Path

from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.runtime.settings import describe, sections

PAGE = Path(__file__).with_name("configuration.md")
_INTRODUCTION = """# Configuration

<!-- Written by docs/make_configuration.py: change the settings classes, then run it again. -->

Every field of an experiment, with its type, its default and the values that it may have. An
experiment (a file of `configs/`) overrides some of them, the command line any:

    python launch/train.py --config=configs/quickstart.py --workdir=runs/my \\
        --config.sft.steps=300 --config.use.images=False --config.evaluation.k="(1, 10)"

All values are checked before anything runs: a misspelt field, a wrong type and a value outside its
range are each one line that names the field. A default that is the name of another field follows
it: `--config.seed=1` sets every seed that is not set itself. `--config.NAME=None` empties a field
of text that may be None.
"""


def page() -> str:
    """The text of docs/configuration.md."""
    return _INTRODUCTION + "".join(
        f"\n## {'The experiment' if name == 'config' else f'`{name}`'}\n\n{_section(name, cls)}"
        for name, cls in sections(Settings)
    )


def _section(name: str, cls: type) -> str:
    file = cls.__module__.replace(".", "/") + ".py"
    about = inspect.cleandoc(cls.__doc__).replace("\n", " ")
    rows = ["| field | type | default | values | meaning |", "| --- | --- | --- | --- | --- |"]
    for row in describe(cls, name):
        default = row.default if row.default.startswith("config.") else f"`{row.default}`"
        field = f"`{row.name.removeprefix('config.')}`"
        doc = row.doc.replace("<", "&lt;")
        rows.append(f"| {field} | {row.type} | {default} | {row.limits} | {doc} |")
    return f"{about} Defined in [{file}](../{file}).\n\n" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
