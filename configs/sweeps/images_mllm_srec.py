"""MLLM-SRec whose summaries are written from another item's image, and from a blank one: what
invented claims cost the ranking.

    python launch/sweep.py --sweep=configs/sweeps/images_mllm_srec.py \\
        --workdir=runs/images-mllm-srec
"""

from mmsrec_jax.methods.sweep import Sweep, each


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/quickstart.py:mllm_srec",
        points=each("understanding.images", ("own", "shuffled", "blank")),
    )
