"""How many similar users: the paper's k, 1 to 8, and none.

    python launch/sweep.py --sweep=configs/sweeps/neighbors.py --workdir=runs/neighbors
    python launch/sweep.py --sweep=configs/sweeps/neighbors.py --workdir=runs/neighbors-seeds \\
        --set=seeds="(0, 1, 2)"
"""

from mmsrec_jax.methods.sweep import Sweep, each


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/quickstart.py",
        points={
            **each("prompts.similar", (5, 1, 3, 8)),  # 5 is the quickstart's own
            "none": {"use.retrieval": False},
        },
    )
