"""What MLLM-SRec's texts about users are worth where the prompt shows their last three items alone.

    python launch/sweep.py --sweep=configs/sweeps/short_history.py --workdir=runs/short-history

The quickstart's prompts show whole histories, of which windows and profiles say nothing new.
`last-window` is told of the last four items, by their text, and of nothing before.
"""

from mmsrec_jax.methods.sweep import Sweep


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/quickstart.py:mllm_srec",
        settings={"prompts.history": 3},
        points={
            "whole": {},
            "last-window": {"use.profile": False, "preferences.max_windows": 1},
            "no-profile": {"use.profile": False},
        },
    )
