"""MLLM-SRec without one of its parts at a time.

    python launch/sweep.py --sweep=configs/sweeps/ablations_mllm_srec.py \\
        --workdir=runs/ablations-mllm-srec
"""

from mmsrec_jax.methods.sweep import Sweep


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/quickstart.py:mllm_srec",
        points={
            "whole": {},
            "no-windows": {"use.windows": False},
            "no-clock": {"use.clock": False},
            "no-profile": {"use.profile": False},
            "no-chain": {"use.chain": False},
            "liked-alone": {"preferences.positives": "liked"},
        },
    )
