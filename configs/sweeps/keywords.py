"""How similar users' next items are shown: as a list of items, or as 4 to 16 keywords, each with
the number of these users.

    python launch/sweep.py --sweep=configs/sweeps/keywords.py --workdir=runs/keywords
"""

from mmsrec_jax.methods.sweep import Sweep, each


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/quickstart.py",
        points=each("prompts.aggregate", (0, 4, 8, 16)),  # 0 is a list of items
    )
