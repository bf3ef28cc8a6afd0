"""One of two processes that save a checkpoint together, damage it, and read it again.

python pair.py DIRECTORY, with the environment that says which one it is
"""

import sys
from pathlib import Path

import jax
import numpy as np

from mmsrec_jax import processes
from mmsrec_jax.errors import UserError
from mmsrec_jax.sharding import batch_sharding, make_mesh
from mmsrec_jax.training.checkpoints import Checkpoints

directory = Path(sys.argv[1])
processes.initialise()
values = np.random.default_rng(0).normal(size=4096).astype(np.float32)
mesh = make_mesh()


def state(step):
    return {"w": processes.put(values + step, batch_sharding(mesh))}


def restored():
    checkpoints = Checkpoints(directory / "checkpoints")
    try:
        step, found, host = checkpoints.restore(state(0))
        assert host == {"position": step}
        np.testing.assert_array_equal(processes.fetch(found["w"]), values + step)
        return step
    finally:
        checkpoints.close()


def damage():
    """Cuts what the other process has written, which it alone reads."""
    (file,) = (directory / "checkpoints" / "2" / "state" / "ocdbt.process_1" / "d").iterdir()
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


checkpoints = Checkpoints(directory / "checkpoints")
for step in (1, 2):
    checkpoints.save(step, state(step), {"position": step})
checkpoints.close()
print("whole", restored(), flush=True)
processes.from_main(damage)
print("damaged", restored(), flush=True)


def refuse():
    raise UserError("the main process says no")


try:
    processes.from_main(refuse)
except UserError as error:
    print(error, processes.gather(jax.process_index()), flush=True)
