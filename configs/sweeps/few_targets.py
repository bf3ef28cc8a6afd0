"""What similar users are worth where the model trains on a sample of the targets.

    python launch/sweep.py --sweep=configs/sweeps/few_targets.py --workdir=runs/few-targets

The base of similar users is that of all users in every point: training on all of them takes an MLLM
long, looking them up does not.
"""

from mmsrec_jax.methods.sweep import Sweep

_ALONE = {"use.retrieval": False}


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/quickstart.py",
        settings={"use.plain_sft": False, "cached.steps": 1050},
        points={
            "4000": {"sft.rows": 4000},
            "4000-alone": {"sft.rows": 4000, **_ALONE},
            "1000": {"sft.rows": 1000},
            "1000-alone": {"sft.rows": 1000, **_ALONE},
        },
    )
