"""What similar users are worth where the model trains on a sample of the users.

    python launch/sweep.py --sweep=configs/sweeps/few_targets.py --workdir=runs/few-targets

Of a sample of the targets the last one of each user is taken, with the items of its history as
targets inside it. The base of similar users is that of all users in every point: training on all of
them takes an MLLM long, looking them up does not. SASRec and the keyword logit know all users too.
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
