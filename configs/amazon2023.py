"""MMSRARec on a category of Amazon Reviews 2023, read from the files as published.

    python launch/train.py --config=configs/amazon2023.py --config.data.root=DIR/amazon2023 \\
        --config.model.path=DIR/Qwen2.5-VL-3B-Instruct --workdir=runs/games
    python launch/train.py --config=configs/amazon2023.py:core --config.data.root=DIR/amazon2023 \\
        --config.data.source=amazon_reviews_2023/Baby_Products-0core \\
        --config.model.path=DIR/Qwen2.5-VL-3B-Instruct --workdir=runs/baby
    python launch/train.py --config=configs/amazon2023.py:small --config.data.root=DIR/amazon2023 \\
        --config.model.path=DIR/SmolLM2-135M-Instruct --workdir=runs/games-small
    python launch/train.py --config=configs/amazon2023.py:sasrec \\
        --config.data.root=DIR/amazon2023 --workdir=runs/games-sasrec

DIR/amazon2023 holds the ratings 5core/rating_only/Video_Games.csv (with `core` those of 0core/) and
the metadata raw/meta_categories/meta_Video_Games.jsonl[.gz], and images/<parent_asin>.jpg, where
there are any. Another category or form: config.data.source (docs/data.md). `core` begins with all
ratings and keeps the core of MMSRARec, 6 interactions a user and 5 an item; the others begin with
the benchmark's 5-core. `small` is for one GPU and minutes: titles without images.
"""

from ml_collections import ConfigDict

from configs import base, beauty
from mmsrec_jax.runtime.config_utils import choose

_VARIANTS = {
    "": "a pretrained model, titles and images of the benchmark's 5-core",
    "core": "the same with the core of MMSRARec, out of all ratings",
    "small": "135M on one GPU, titles alone",
    **base.SEQUENTIAL_MODELS,
}


def get_config(variant: str = "") -> ConfigDict:
    choose(variant, _VARIANTS, file="configs/amazon2023.py")
    small = variant == "small"
    config = base.get_config(variant if variant in base.SEQUENTIAL_MODELS else "")
    with config.unlocked():
        config.data.source = "amazon_reviews_2023/Video_Games"
        if variant == "core":
            config.data.update(
                source="amazon_reviews_2023/Video_Games-0core", user_core=6, item_core=5
            )
        config.prompts.update(fields=("title", "description"), text_tokens=64)
        config.model.max_pixels = 0 if small else 128 * 28 * 28
        config.hm4sr.category_separator = ","
        # As sparse as Beauty; not searched again.
        config.sasrec.update(beauty.SASREC)
    if small:
        base.one_gpu(config)
        base.titles_alone(config)
    return config.lock()
