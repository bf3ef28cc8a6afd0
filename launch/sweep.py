"""Runs an experiment at the points of a sweep, one after the other, and compares them.

    python launch/sweep.py --sweep=configs/sweeps/neighbors.py --workdir=runs/neighbors
    python launch/sweep.py --sweep=configs/sweeps/neighbors.py --workdir=runs/neighbors --list
    python launch/sweep.py --sweep=configs/sweeps/ablations.py --workdir=runs/ablations \\
        --config=configs/beauty.py --set=sft.steps=500 --set=seeds="(0, 1, 2)"

Each point is a run of launch/train.py in its own folder and process; steps that do not depend on
what differs run once. A command that was stopped goes on. Ends in a table, sweep.csv, sweep.json
and a page with a plot, sweep.html. --list prints the commands of the points and runs nothing.
"""

import dataclasses
import shlex
import sys
from pathlib import Path

import jax
from absl import flags, logging

from mmsrec_jax.runtime import interruption, startup
from mmsrec_jax.runtime.printable import printable_lines

_SWEEP = flags.DEFINE_string("sweep", None, "File of the sweep, e.g. configs/sweeps/neighbors.py.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the sweep, or gs://BUCKET/FOLDER: a sub-folder for each point."
)
flags.DEFINE_string("local_dir", None, startup.LOCAL_DIR)
_CONFIG = flags.DEFINE_string("config", None, "Experiment in place of the one that the file names.")
_SET = flags.DEFINE_multi_string(
    "set", [], "FIELD=VALUE, a field of the config for every point, e.g. sft.steps=200. Repeatable."
)
_LIST = flags.DEFINE_bool("list", False, "Print the command of each point and run nothing.")
_STOP = flags.DEFINE_bool("stop_on_failure", False, "A point that fails ends the sweep.")
_ALLOW_CPU = flags.DEFINE_bool("allow_cpu", False, "Run on the CPU of a machine with a TPU or GPU.")


def main(argv: list[str]) -> int:
    startup.no_arguments(argv)
    interruption.watch()
    jax.config.update("jax_platforms", "cpu")  # leaves accelerators to the processes of the points
    from mmsrec_jax.methods import sweep
    from mmsrec_jax.methods.sweep_run import SweepRun
    from mmsrec_jax.runtime.buckets import run as buckets
    from mmsrec_jax.runtime.buckets.objects import is_url

    file = Path(_SWEEP.value)
    found = sweep.read(file)
    found = sweep.with_settings(file, found, sweep.parse_settings(_SET.value))
    found = dataclasses.replace(found, config=_CONFIG.value or found.config)
    points = sweep.points(file, found)
    given = _WORKDIR.value.rstrip("/")
    own = [f"--local_dir={flags.FLAGS.local_dir}"] if flags.FLAGS.local_dir else []
    opened = buckets.only_reading(given, begun=False) if _LIST.value else buckets.opened(given)
    with opened as workdir:
        workdir = workdir.resolve()
        run = SweepRun(
            file=file,
            sweep=found,
            points=points,
            workdir=workdir,
            place=given if is_url(given) else str(workdir),
            program=(sys.executable, str(Path(__file__).with_name("train.py"))),
            flags=(*(["--allow_cpu"] if _ALLOW_CPU.value else []), *own),
            stop_on_failure=_STOP.value,
        )
        if _LIST.value:
            print(printable_lines("\n".join(shlex.join(run.command(p)) for p in run.points)))
            return 0
        table, failed = run.run()
        print(printable_lines(table))
        return int(failed > 0)


if __name__ == "__main__":
    try:
        startup.launch(main, required=["sweep", "workdir"])
    except interruption.Interrupted:
        logging.info("stopped by SIGTERM; go on with: %s", shlex.join(sys.orig_argv))
