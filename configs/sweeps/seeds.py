"""One experiment under five seeds, a row each: how far a number moves between seeds. Data, test
users and candidates stay.

    python launch/sweep.py --sweep=configs/sweeps/seeds.py --workdir=runs/spread
"""

from mmsrec_jax.methods.sweep import Sweep, each


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/quickstart.py",
        points=each("seed", range(5)),
        settings={"data.seed": 0, "data.toyshop.seed": 0, "evaluation.seed": 0},
    )
