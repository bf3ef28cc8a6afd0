"""MMSRARec on MicroLens-50k, the data set of its paper's first table; sequential models beside.

    python launch/train.py --config=configs/microlens.py --config.data.root=DIR/microlens-50k \\
        --config.model.path=DIR/Qwen2.5-VL-3B-Instruct --workdir=runs/microlens
    python launch/train.py --config=configs/microlens.py --config.data.root=DIR/MicroLens-50k \\
        --config.data.source=microlens/50k \\
        --config.model.path=DIR/Qwen2.5-VL-3B-Instruct --workdir=runs/microlens
    python launch/train.py --config=configs/microlens.py:small \\
        --config.data.root=DIR/microlens-50k --config.model.path=DIR/SmolLM2-135M-Instruct \\
        --workdir=runs/microlens-small
    python launch/train.py --config=configs/microlens.py:sasrec \\
        --config.data.root=DIR/microlens-50k --workdir=runs/microlens-sasrec
    python launch/train.py --config=configs/microlens.py:features \\
        --config.data.root=DIR/microlens-50k --config.model.path=DIR/SmolLM2-135M \\
        --workdir=runs/microlens-features

DIR/microlens-50k holds microlens-50k.inter[.gz], microlens-50k.item with the columns item_id and
title, and images/<item_id>.jpg, the covers. DIR/MicroLens-50k holds the published files and the
folder of covers (docs/data.md). The core of users and items is the paper's: 25,411
users and 11,896 items are left. `small` is for one GPU and minutes: titles without covers, 5,000
of the test users.
"""

from ml_collections import ConfigDict

from configs import base, beauty
from mmsrec_jax.runtime.config_utils import choose

_VARIANTS = {
    "": "a pretrained model, titles and covers",
    "small": "135M on one GPU, titles alone",
    "cached": "135M on one GPU, titles alone, items cached: the whole catalog is ranked",
    "features": "SASRec, Molar and HM4SR; the last two read what 135M make of titles",
    **base.SEQUENTIAL_MODELS,
}


def get_config(variant: str = "") -> ConfigDict:
    choose(variant, _VARIANTS, file="configs/microlens.py")
    small = variant in ("small", "cached")
    alone = "sasrec" if variant == "features" else variant
    config = base.get_config("" if small else alone)
    with config.unlocked():
        config.data.update(
            download_page="https://github.com/westlake-repl/MicroLens", user_core=6, item_core=5
        )
        config.prompts.update(
            fields=("title",), list_fields=("title",), text_tokens=48, history_patches=2560
        )
        config.model.max_pixels = 0 if small else 128 * 28 * 28
        # As large a catalog; not searched again.
        config.sasrec.update(beauty.SASREC)
    if small:
        base.one_gpu(config)
        base.titles_alone(config)
        with config.unlocked():
            config.prompts.text_tokens = 48
            config.evaluation.length = 2048
    if variant == "cached":
        base.cached_titles(config)
    if variant == "features":
        base.title_features(config)
    return config.lock()
