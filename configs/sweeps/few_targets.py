"""What similar users are worth where the model trains on a sample of the users, by what it reads.

    python launch/sweep.py --sweep=configs/sweeps/few_targets.py --workdir=runs/few-targets

Of a sample of the targets the last one of each user is taken, with the items of its history as
targets inside it. The base of similar users is that of all users in every point: training on all of
them takes an MLLM long, looking them up does not. SASRec and the keyword logit know all users too.
In the points `prompt-end` a user is where the prompt ends, behind the similar users, and not where
the history ends as well.
"""

from mmsrec_jax.methods.sweep import Sweep

_ALONE = {"use.retrieval": False}
_PROMPT_END = {"cached.history_end": False}


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/quickstart.py",
        settings={
            "use.plain_sft": False,
            "sft.rows": 4000,
            "cached.steps": 1050,
            "cached.history_end": True,
        },
        points={
            "whole": {},
            "alone": _ALONE,
            "prompt-end": _PROMPT_END,
            "prompt-end-alone": {**_PROMPT_END, **_ALONE},
        },
    )
