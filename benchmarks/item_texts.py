"""How much of the toyshop's item summaries is true, by what they are written from.

    python benchmarks/item_texts.py --workdir=runs/item_texts    # a quarter of an hour on two cores

One tiny model from scratch, whose warm-up teaches every mode alike, writes the summaries of all
items once in each mode, and in the paper's once more with shuffled and with blank images. Claims
are checked against the truth of the generator. Prints a table; what each pass wrote is in
`WORKDIR/superseded`, that of the last one in `WORKDIR`.
"""

import json
import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs import quickstart
from mmsrec_jax.evaluation import claims
from mmsrec_jax.inputs.understanding import BOTH_VQA, MODES
from mmsrec_jax.methods.item_texts import CLAIMS, ItemTexts
from mmsrec_jax.methods.mllm import MLLMExperiment
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.runtime import startup
from mmsrec_jax.runtime.settings import from_config
from mmsrec_jax.runtime.workdir import Step

_WORKDIR = flags.DEFINE_string("workdir", "runs/item_texts", "Where the run is kept.")
_STEPS = flags.DEFINE_integer("steps", 240, "Of the warm-up.")
_VARIANTS = [(mode, "own") for mode in MODES] + [(BOTH_VQA, "shuffled"), (BOTH_VQA, "blank")]


class Understanding(MLLMExperiment):
    """Item understanding alone."""

    def steps(self) -> list[Step]:
        return [
            self.data_step(), *self.base_steps(), *ItemTexts(self).steps(self.base_inputs())
        ]  # fmt: skip


def settings(mode: str, images: str, steps: int) -> Settings:
    """Those of the quickstart, with a warm-up for item understanding."""
    config = quickstart.get_config()
    with config.unlocked():
        config.warmup.steps = steps
        config.warmup.tasks.update(describe=0.0, see=0.0, vqa=0.1, retell=0.0, look=0.4, fuse=0.5)
        config.understanding.update(
            mode=mode, images=images, questions=("color", "pattern"), batch_size=100,
            prompt_length=80, patches=4, answer_tokens=4, summary_tokens=16,
        )  # fmt: skip
    return from_config(Settings, config)


def main(argv: list[str]) -> None:
    del argv
    workdir, parts = Path(_WORKDIR.value), {}
    for mode, images in _VARIANTS:
        Understanding.run(settings(mode, images, _STEPS.value), workdir)
        found = json.loads((workdir / CLAIMS / "claims.json").read_text())
        name = mode if images == "own" else f"{mode}, {images} images"
        parts[name] = found["summaries"]
        if "answers" in found:
            parts[f"{name}: answers"] = found["answers"]
    print(claims.table(parts), end="")


if __name__ == "__main__":
    startup.launch(main)
