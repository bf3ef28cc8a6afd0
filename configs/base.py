"""Every field of an experiment with its default. Experiments start from here and change some.

    from configs import base
    config = base.get_config()
    config.sft.steps = 500

The fields, their defaults and their ranges: docs/configuration.md. They stand in the code as
settings classes beside what reads them, composed in mmsrec_jax/methods/settings.py.

MMSRARec on a folder of atomic files, with a pretrained model or, without `model.path`, a small one
from scratch:

    python launch/train.py --config=configs/base.py --config.data.root=DIR \\
        --config.model.path=DIR/Qwen2.5-VL-3B-Instruct --workdir=runs/my

A sequential recommender by itself, on any such folder:

    python launch/train.py --config=configs/base.py:sasrec --config.data.root=DIR --workdir=runs/my
"""

from ml_collections import ConfigDict

from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.runtime.config_utils import choose
from mmsrec_jax.runtime.settings import to_config

SEQUENTIAL_MODELS = {  # variant = section of the config -> what it is
    "sasrec": "SASRec by itself",
    "bert4rec": "BERT4Rec by itself",
    "gru4rec": "GRU4Rec by itself",
    "molar": "Molar by itself",
    "hm4sr": "HM4SR by itself",
}


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: a sequential recommender by itself; empty for MMSRARec."""
    choose(variant, {"": "MMSRARec", **SEQUENTIAL_MODELS}, file="configs/base.py")
    settings = Settings(method="sequential", sequential_model=variant) if variant else Settings()
    return to_config(settings).lock()
