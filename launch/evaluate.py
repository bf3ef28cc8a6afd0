"""Compares the systems of finished runs, user by user; makes the page of a run again.

    python launch/evaluate.py --compare runs/a runs/b --baseline=sasrec --out=runs/comparison
    python launch/evaluate.py --compare runs/a --external=ease=ease.parquet
    python launch/evaluate.py --page runs/a runs/b

--compare prints every metric with paired-bootstrap intervals of the difference to the baseline, and
writes CSV, JSON, LaTeX, a plot and a page, comparison.html. --page writes report.html in each run's
folder, as launch/train.py does after every step, from what lies there.
"""

import contextlib
from pathlib import Path

import jax
from absl import flags, logging

from mmsrec_jax.runtime import startup
from mmsrec_jax.runtime.buckets import outputs
from mmsrec_jax.runtime.buckets import run as buckets
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.printable import printable_lines
from mmsrec_jax.runtime.settings import MAX_SEED

_COMPARE = flags.DEFINE_bool("compare", False, "Compare the workdirs that are named.")
_PAGE = flags.DEFINE_bool("page", False, "Make the page of each workdir that is named.")
flags.DEFINE_string("local_dir", None, startup.LOCAL_DIR)
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
    "out", None, "Folder of the files, also in a bucket, by default comparison/ in the first run."
)
_BOOTSTRAP = flags.DEFINE_integer("bootstrap", 10_000, "Resamples of the users.", 1, 100_000)
_SEED = flags.DEFINE_integer("seed", 0, "Of the resamples.", 0, MAX_SEED)


def main(argv: list[str]) -> None:
    if not ((_COMPARE.value or _PAGE.value) and argv[1:]):
        raise UserError("nothing to compare: say --compare RUN_A RUN_B ..., or --page RUN ...")
    jax.config.update("jax_platforms", "cpu")  # leaves accelerators to those who train on them
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(buckets.reading(name)) for name in argv[1:]]
        if _PAGE.value:
            from mmsrec_jax.methods import page

            for run in runs:
                print(printable_lines(str(page.write(run))))
        if _COMPARE.value:
            with outputs.folder(_OUT.value or runs[0] / "comparison") as out:
                _compare(runs, out)
    if _COMPARE.value:
        place = _OUT.value or f"{argv[1].rstrip('/')}/comparison"
        logging.info("comparison: CSV, JSON, LaTeX, plots and page are in %s", place)


def _compare(runs: list[Path], out: Path) -> None:
    from mmsrec_jax.evaluation.comparison import compare
    from mmsrec_jax.pages import compare_page

    found = compare.run(
        runs,
        baseline=_BASELINE.value,
        cutoffs=compare.parse_cutoffs(_K.value),
        ties=_TIES.value,
        resamples=_BOOTSTRAP.value,
        seed=_SEED.value,
        external_files=_EXTERNAL.value,
        out=out,
    )
    compare_page.write(out, runs)
    print(printable_lines(found))


if __name__ == "__main__":
    startup.launch(main)
