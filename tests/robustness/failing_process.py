"""One of several processes, of which one fails while the others wait for it.

python failing_process.py --how=WAY --who=ID, with the environment that says which process it is
"""

import os
import signal
import time

import jax
from absl import flags

from mmsrec_jax.runtime import processes, startup
from mmsrec_jax.runtime.errors import UserError

_HOW = flags.DEFINE_enum("how", "fault", ["fault", "user", "disk", "kill", "main", "well"], "")
_JOIN_SECONDS = flags.DEFINE_integer("join_seconds", processes.JOIN_SECONDS, "")
_WHO = flags.DEFINE_integer("who", 1, "Process that fails.")


def main(_: list[str]) -> None:
    processes.initialize(_JOIN_SECONDS.value)
    processes.barrier()
    if jax.process_index() == _WHO.value:
        if _HOW.value == "fault":
            raise ValueError("a fault\nin two lines")
        if _HOW.value == "user":
            raise UserError("data.inter, row 3: no number")
        if _HOW.value == "disk":
            raise OSError(28, "No space left on device", "/shared/metrics.jsonl")
        if _HOW.value == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    if _HOW.value == "main":
        processes.from_main(lambda: open("/nowhere/at/all"))
    print("waits", flush=True)
    processes.barrier()
    time.sleep(0.1)


if __name__ == "__main__":
    startup.launch(main)
