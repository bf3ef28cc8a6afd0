"""MMSRARec without one of its parts at a time.

python launch/sweep.py --sweep=configs/sweeps/ablations.py --workdir=runs/ablations
"""

from mmsrec_jax.methods.sweep import Sweep


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/quickstart.py",
        settings={"use.plain_sft": False},  # a row of its own, which no part changes
        points={
            "whole": {},
            "no-rewards": {"use.rewards": False},
            "no-summaries": {"use.summaries": False},
            "no-retrieval": {"use.retrieval": False},
            "no-images": {"use.images": False},
            "no-ratings": {"prompts.ratings": False},
            "no-pauses": {"prompts.pauses": False},
        },
    )
