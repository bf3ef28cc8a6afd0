"""Compares the systems of finished runs, user by user.

    python launch/evaluate.py --compare runs/a runs/b --baseline=sasrec --out=runs/comparison
    python launch/evaluate.py --compare runs/a --external=ease=ease.parquet

Prints every metric with paired-bootstrap intervals of the difference to the baseline, and writes
CSV, JSON, LaTeX and a plot.
"""

from pathlib import Path

import jax
from absl import flags

from mmsrec_jax.runtime import startup
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.printable import printable_lines
from mmsrec_jax.runtime.settings import MAX_SEED

_COMPARE = flags.DEFINE_bool("compare", False, "Compare the workdirs that are named.")
_BASELINE = flags.DEFINE_string("baseline", "popularity", "System that differences are taken to.")
_K = flags.DEFINE_list("k", ["1", "5", "10", "20"], "Cut-offs of the metrics.")
_TIES = flags.DEFINE_enum(
    "ties",
    "pessimistic",
    ["pessimistic", "expected"],
    "Equal scores count against the model, or as their expectation over random orders.",
)
_EXTERNAL = flags.DEFINE_multi_string(
    "external", [], "NAME=FILE: parquet or CSV of user, item, score by raw ids. Repeatable."
)
_OUT = flags.DEFINE_string(
    "out", None, "Folder of the files, by default comparison/ in the first run."
)
_BOOTSTRAP = flags.DEFINE_integer("bootstrap", 10_000, "Resamples of the users.", 1, 100_000)
_SEED = flags.DEFINE_integer("seed", 0, "Of the resamples.", 0, MAX_SEED)


def main(argv: list[str]) -> None:
    runs = [Path(name) for name in argv[1:]]
    if not (_COMPARE.value and runs):
        raise UserError("nothing to compare: say --compare RUN_A RUN_B ...")
    jax.config.update("jax_platforms", "cpu")  # leaves accelerators to those who train on them
    from mmsrec_jax.evaluation.comparison import compare

    found = compare.run(
        runs,
        baseline=_BASELINE.value,
        cutoffs=compare.parse_cutoffs(_K.value),
        ties=_TIES.value,
        resamples=_BOOTSTRAP.value,
        seed=_SEED.value,
        external_files=_EXTERNAL.value,
        out=Path(_OUT.value) if _OUT.value else runs[0] / "comparison",
    )
    print(printable_lines(found))


if __name__ == "__main__":
    startup.launch(main)
