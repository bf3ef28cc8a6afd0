"""What older windows and the profile are worth to MLLM-SRec where the prompt shows three items.

    python launch/sweep.py --sweep=configs/sweeps/short_history.py --workdir=runs/short-history

The quickstart's prompts show whole histories, of which windows and profiles say nothing new.
`last-window` is told of one window alone, whose text is not written after another: four items, the
last of them the user's last or the one before it. A shorter history has fewer targets inside it, so
that these points are compared with each other and not with those of whole histories.
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
