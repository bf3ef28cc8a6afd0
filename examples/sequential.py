"""A sequential recommender on a folder of RecBole atomic files, ranked in the whole catalog.

    python examples/sequential.py --root=DIR --workdir=runs/sequential

Prints the metrics of the test targets, each ranked among all items that its user did not have
before. Another model is another settings class: GRU4RecSettings of sequential/gru4rec.py, ...
"""

from absl import flags

import mmsrec_jax
from mmsrec_jax.evaluation import metrics, ranking
from mmsrec_jax.runtime import startup
from mmsrec_jax.sequential import train
from mmsrec_jax.sequential.sasrec import SASRecSettings

_ROOT = flags.DEFINE_string("root", None, "Folder of NAME.inter and NAME.item.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/sequential", "Where checkpoints and weights go.")
_STEPS = flags.DEFINE_integer("steps", 2000, "Updates at most; validation stops earlier.", 1)


def main(_: list[str]) -> None:
    catalog, histories, split = mmsrec_jax.open_dataset(_ROOT.value)
    model = train.train(
        SASRecSettings(steps=_STEPS.value),
        histories,
        split,
        num_items=len(catalog),
        directory=_WORKDIR.value,
    )
    ranks = ranking.full(model, histories, split.test)
    for name, value in metrics.summary(ranks, cutoffs=(5, 10)).items():
        print(f"{name:10} {value:.4f}")


if __name__ == "__main__":
    startup.launch(main, required=["root"])
