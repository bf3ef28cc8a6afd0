"""Runs the steps of an experiment, skips those that are finished, resumes one that was killed.

    python launch/train.py --config=configs/quickstart.py --workdir=runs/quickstart
    python launch/train.py --config=configs/beauty.py --workdir=runs/beauty --steps=sft,evaluation
    python launch/train.py --config=configs/base.py:sasrec --config.data.root=DIR --workdir=runs/my
    python launch/train.py --config=configs/beauty.py --workdir=runs/longer \\
        --config.sft.steps=900 --reuse=runs/beauty

Any field of the config can be set on the command line: --config.sft.steps=200
SIGTERM saves, logs the command that continues the run, and ends with status 0.
"""

import shlex
import sys

from absl import flags, logging
from ml_collections import config_flags

from mmsrec_jax.runtime import input_workers, interruption, processes, startup

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment, e.g. configs/movielens.py:smoke.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, or gs://BUCKET/FOLDER: a sub-folder for each step."
)
flags.DEFINE_string("local_dir", None, startup.LOCAL_DIR)
_STEPS = flags.DEFINE_list("steps", None, "Run only these steps, e.g. sft,evaluation.")
_REUSE = flags.DEFINE_multi_string(
    "reuse",
    [],
    "Another run, also in a bucket: its finished steps of equal settings are taken. Repeatable.",
)
_ALLOW_CPU = flags.DEFINE_bool("allow_cpu", False, "Run on the CPU of a machine with a TPU or GPU.")
_JOIN_SECONDS = flags.DEFINE_integer(
    "join_seconds", processes.JOIN_SECONDS, "Of several processes: wait so long for all.", 1, 86_400
)


def main(argv: list[str]) -> None:
    startup.no_arguments(argv)
    processes.initialize(_JOIN_SECONDS.value)
    if not processes.is_main():
        logging.set_verbosity(logging.WARNING)
    interruption.watch()
    input_workers.keep_jax_out()
    startup.check_devices(allow_cpu=_ALLOW_CPU.value)
    from mmsrec_jax import methods

    methods.run(_CONFIG.value, _WORKDIR.value, only=_STEPS.value, reuse=_REUSE.value)


if __name__ == "__main__":
    try:
        startup.launch(main, required=["config", "workdir"])
    except interruption.Interrupted:
        logging.info("stopped by SIGTERM; go on with: %s", shlex.join(sys.orig_argv))
