"""Fits held-out loss against training compute over finished runs of configs/scaling.py.

    python launch/scaling.py runs/scaling/* --predict=1e12,1e15
    python launch/compile.py --config=configs/scaling.py:size=7b --topology=v5e:8x8 --steps=sft \\
        --out=7b.json
    python launch/scaling.py runs/scaling/* --compiled=7b.json

Prints the table, the law and its predictions, for compiled programs with step time and memory;
writes scaling.json, .png and .svg.
"""

import contextlib
from pathlib import Path

from absl import flags

from mmsrec_jax.runtime import startup
from mmsrec_jax.runtime.buckets import objects, outputs
from mmsrec_jax.runtime.buckets import run as buckets
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.printable import printable_lines
from mmsrec_jax.runtime.settings import MAX_SEED

_PREDICT = flags.DEFINE_list("predict", [], "FLOPs for which the loss is predicted.")
flags.DEFINE_string("local_dir", None, startup.LOCAL_DIR)
_COMPILED = flags.DEFINE_multi_string("compiled", [], "JSON of launch/compile.py. Repeatable.")
_OUT = flags.DEFINE_string(
    "out", None, "Folder of the files, also in a bucket, by default beside the first run."
)
_RESAMPLES = flags.DEFINE_integer(
    "resamples", 1000, "Of the residuals, for the intervals.", 1, 100_000
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the resamples.", 0, MAX_SEED)


def main(argv: list[str]) -> None:
    if not argv[1:]:
        raise UserError("no runs: name the workdirs of finished ones")
    if _OUT.value is None and objects.is_url(argv[1]):
        raise UserError(f"{argv[1]}: of runs in a bucket, give --out too")
    from mmsrec_jax.evaluation import scaling_law

    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(buckets.reading(name)) for name in argv[1:]]
        out = stack.enter_context(outputs.folder(_OUT.value or runs[0].parent))
        found = scaling_law.study(
            runs,
            predict=scaling_law.parse_flops(_PREDICT.value),
            compiled=[Path(name) for name in _COMPILED.value],
            resamples=_RESAMPLES.value,
            seed=_SEED.value,
            out=out,
        )
    print(printable_lines(found))


if __name__ == "__main__":
    startup.launch(main)
