"""MMSRARec on MovieLens-1M with posters, read from atomic files.

    python launch/train.py --config=configs/movielens.py --config.data.root=DIR/ml-1m \\
        --config.model.path=DIR/Qwen2.5-VL-3B-Instruct --workdir=runs/ml
    python launch/train.py --config=configs/movielens.py --config.data.root=DIR/ml-1m \\
        --config.model.path=DIR/my-llava --config.model.max_pixels=0 \\
        --config.warmup.pretrained=True --config.data.attribute_fields="('genres',)" \\
        --workdir=runs/ml-connector
    python launch/train.py --config=configs/movielens.py:smoke --config.data.root=DIR/ml-1m \\
        --workdir=runs/ml-smoke
    python launch/train.py --config=configs/movielens.py:sasrec --config.data.root=DIR/ml-1m \\
        --workdir=runs/ml-sasrec
    python launch/train.py --config=configs/movielens.py:hm4sr --config.data.root=DIR/ml-1m \\
        --config.model.path=DIR/Qwen2.5-VL-3B-Instruct --workdir=runs/ml-hm4sr

DIR/ml-1m holds ml-1m.inter[.gz], ml-1m.item and images/<item_id>.jpg. The columns of ml-1m.item:
item_id, title, year, abstract (the plot), genres; RecBole's own file has other names, such as
movie_title, and no plot. The second command is for a vision-language model whose connector is
untrained: a warm-up on posters and genres trains it first (docs/faq.md). `smoke` is for two CPU
cores: a subset of users, films with a poster only, a tiny model from scratch.
"""

from ml_collections import ConfigDict

from configs import base, quickstart
from mmsrec_jax.runtime.config_utils import choose

_VARIANTS = {
    "": "a pretrained model, all users",
    "smoke": "two CPU cores, under 20 minutes",
    **base.SEQUENTIAL_MODELS,
}


def get_config(variant: str = "") -> ConfigDict:
    variant = choose(variant, _VARIANTS, file="configs/movielens.py")
    smoke = variant == "smoke"
    config = quickstart.get_config() if smoke else base.get_config(variant)
    with config.unlocked():
        config.data.update(
            source="atomic",
            download_page="https://grouplens.org/datasets/movielens/1m/",
            text_fields=("title", "year", "abstract"),
            category_field="genres",
            user_core=5,
            item_core=5,
        )
        config.prompts.update(fields=("title", "abstract"), list_fields=("title",))
        config.hm4sr.category_separator = " "
        config.model.max_pixels = 0 if smoke else 256 * 28 * 28
    if smoke:
        _smoke(config)
    return config.lock()


def _smoke(config: ConfigDict) -> None:
    with config.unlocked():
        config.data.update(
            max_users=600,
            only_items_with_image=True,
            attribute_fields=("genres",),
            category_field=None,
            text_fields=("title", "year"),
        )
        config.model.tiny.update(vocab_size=2048)
        config.prompts.update(fields=("title",), image_attributes=(), text_tokens=12, similar=3)
        config.warmup.update(steps=150, noise=0.0)
        config.summarizer.update(steps=20, prompt_length=40)
        for name in base.SEQUENTIAL_MODELS:
            config[name].update(length=50, batch_size=32, steps=600)
            if "dropout" in config[name]:
                config[name].dropout = 0.3
        config.sft.update(steps=150, batch_size=16, length=384, rows=20_000, workers=0)
        config.evaluation.update(users=300, length=768)
