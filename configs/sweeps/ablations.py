"""MMSRARec without one of its parts at a time.

    python launch/sweep.py --sweep=configs/sweeps/ablations.py --workdir=runs/ablations

`plain` has neither keywords nor similar users: titles of the history, and the whole text and the
image of an item, in the form of the method and with as many updates. Its room for tokens, and that
of `no-summaries`, is for the texts of the toyshop.
"""

from mmsrec_jax.methods.sweep import Sweep

_TEXTS = {"cached.item_length": 56}  # an item's text is longer than its keywords


def get_sweep() -> Sweep:
    return Sweep(
        config="configs/quickstart.py",
        settings={"use.plain_sft": False},  # a row of its own, which no part changes
        points={
            "whole": {},
            "no-rewards": {"use.rewards": False},
            "no-summaries": {"use.summaries": False, **_TEXTS},
            "no-retrieval": {"use.retrieval": False},
            "plain": {
                "use.summaries": False,
                "use.retrieval": False,
                "cached.prompt_length": 80,
                **_TEXTS,
            },
            "no-images": {"use.images": False},
            "no-ratings": {"prompts.ratings": False},
            "no-pauses": {"prompts.pauses": False},
        },
    )
