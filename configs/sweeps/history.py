"""How many of the user's last items: the paper's n.

python launch/sweep.py --sweep=configs/sweeps/history.py --workdir=runs/history
"""

from mmsrec_jax.methods.sweep import Sweep, each


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/quickstart.py",
        points=each("prompts.history", (11, 2, 5, 8)),  # 11 is the quickstart's own
    )
