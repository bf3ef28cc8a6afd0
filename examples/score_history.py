r"""What a finished run recommends after a history that you type.

The best of the whole catalog, by the run's sequential recommender:

    python examples/score_history.py --workdir=runs/quickstart --history=i0007,i0023

A few items that you name, by the run's MMSRARec model, which looks at their pictures:

    python examples/score_history.py --workdir=runs/quickstart --history=i0007,i0023 \
        --candidates=i0001,i0042,i0100
"""

from absl import flags

import mmsrec_jax
from mmsrec_jax.runtime import startup

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run.")
_HISTORY = flags.DEFINE_list("history", None, "Raw item ids, oldest first.")
_CANDIDATES = flags.DEFINE_list("candidates", None, "Raw item ids; without them the catalog.")
_TOP = flags.DEFINE_integer("top", 10, "Items to show.", 1)


def main(_: list[str]) -> None:
    ranked = mmsrec_jax.recommend(_WORKDIR.value, _HISTORY.value, _CANDIDATES.value, _TOP.value)
    for item_id, score, title in ranked:
        print(f"{score:9.4f}  {item_id:12}  {title}")


if __name__ == "__main__":
    startup.launch(main, required=["workdir", "history"])
