"""A run of two steps that starts fast, for tests that kill it: texts, and a training."""

import os
from pathlib import Path

import killed

from mmsrec_jax.inference.text_store import TextStore
from mmsrec_jax.runtime.buckets import copies
from mmsrec_jax.runtime.buckets import run as buckets
from mmsrec_jax.runtime.workdir import Step, run_steps


def steps(asked: Path) -> list[Step]:
    """asked: file that gets a line for each text that is written."""

    def texts(directory: Path) -> None:
        store = TextStore(directory / "texts.jsonl", "item")
        for item in store.outdated(range(6), str):
            with asked.open("a") as file:
                file.write(f"{item}\n")
            store.append([(item, {"text": f"of {item}"}, str(item))])
            buckets.push(directory)  # as once a minute

    def train(directory: Path) -> None:
        killed.run(directory, 90, 0.0)

    return [Step("texts", texts, {}), Step("train", train, {}, inputs=("texts",))]


def run(environment: dict[str, str], machine: Path, asked: Path) -> None:
    """Runs them in gs://lab/run, as the machine whose copies are in `machine`."""
    os.environ |= environment
    copies.use_local_dir(machine)
    with buckets.opened("gs://lab/run") as folder:
        run_steps(folder, steps(asked))
