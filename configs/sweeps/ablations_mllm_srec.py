"""MLLM-SRec without one of its parts at a time.

    python launch/sweep.py --sweep=configs/sweeps/ablations_mllm_srec.py \\
        --workdir=runs/ablations-mllm-srec

`no-vqa` writes summaries from image and text without the questions, `text-alone` without the image.
"""

from mmsrec_jax.methods.sweep import Sweep


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/quickstart.py:mllm_srec",
        points={
            "whole": {},
            "no-clock": {"use.clock": False},
            "no-windows": {"use.windows": False},
            "no-profile": {"use.profile": False},
            "no-chain": {"use.chain": False},
            "no-vqa": {"understanding.mode": "both"},
            "text-alone": {"understanding.mode": "text"},
            "liked-alone": {"preferences.positives": "liked"},
        },
    )
