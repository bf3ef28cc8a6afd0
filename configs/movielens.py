r"""MMSRARec on MovieLens-1M with posters, read from atomic files; MLLM-SRec on latest-small.

    python launch/train.py --config=configs/movielens.py --config.data.root=DIR/ml-1m \
        --config.model.path=DIR/Qwen2.5-VL-3B-Instruct --workdir=runs/ml
    python launch/train.py --config=configs/movielens.py --config.data.root=DIR/ml-1m \
        --config.model.path=DIR/my-llava --config.model.max_pixels=0 \
        --config.warmup.pretrained=True --config.data.attribute_fields="('genres',)" \
        --workdir=runs/ml-connector
    python launch/train.py --config=configs/movielens.py:smoke --config.data.root=DIR/ml-1m \
        --workdir=runs/ml-smoke
    python launch/train.py --config=configs/movielens.py:titles --config.data.root=DIR/ml-1m \
        --workdir=runs/ml-titles
    python launch/train.py --config=configs/movielens.py:sasrec --config.data.root=DIR/ml-1m \
        --workdir=runs/ml-sasrec
    python launch/train.py --config=configs/movielens.py:hm4sr --config.data.root=DIR/ml-1m \
        --config.model.path=DIR/Qwen2.5-VL-3B-Instruct --workdir=runs/ml-hm4sr
    python launch/train.py --config=configs/movielens.py:small --config.data.root=DIR/ml-1m \
        --config.model.path=DIR/tiny-llava --workdir=runs/ml-small
    python launch/train.py --config=configs/movielens.py:latest_small \
        --config.data.root=DIR/ml-small --config.data.images_root=DIR/ml-1m/images \
        --workdir=runs/ml-latest-small

DIR/ml-1m holds ml-1m.inter[.gz], ml-1m.item and images/<item_id>.jpg. The columns of ml-1m.item:
item_id, title, year, abstract (the plot), genres; RecBole's own file has other names, such as
movie_title, and no plot. The second command is for a vision-language model whose connector is
untrained: a warm-up on posters and genres trains it first (docs/faq.md). `smoke` is for two CPU
cores: a subset of users, films with a poster only, a tiny model from scratch. `small` is for one
GPU and minutes: titles and posters, a LLaVA of about 157M parameters with a new connector
(SmolLM2-135M and DINOv2-S, made by benchmarks/accelerator), which the warm-up trains first.
`latest_small` is MLLM-SRec on two CPU cores: ratings, times and a split by time, which ml-1m.inter
lacks. DIR/ml-small holds ml-small.inter with ratings and Unix seconds, and ml-small.item; films of
both data sets have the same ids, and so share posters. GroupLens' own files of it are read with
--config.data.source=movielens/latest-small.
"""

from ml_collections import ConfigDict

from configs import base, quickstart
from mmsrec_jax.runtime.config_utils import choose

_VARIANTS = {
    "": "a pretrained model, all users",
    "smoke": "two CPU cores, under 20 minutes",
    "titles": "two CPU cores, under 20 minutes: all users, titles alone, the whole catalog ranked",
    "small": "157M on one GPU, titles and posters",
    "latest_small": "MLLM-SRec on two CPU cores: latest-small, ratings, times, posters",
    **base.SEQUENTIAL_MODELS,
}


def get_config(variant: str = "") -> ConfigDict:
    variant = choose(variant, _VARIANTS, file="configs/movielens.py")
    if variant == "latest_small":
        return _latest_small()
    small, tiny = variant == "small", variant in ("smoke", "titles")
    config = quickstart.get_config() if tiny else base.get_config("" if small else variant)
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
        config.model.max_pixels = 0 if tiny or small else 256 * 28 * 28
    if tiny:
        config.prompts.update(ratings=False, pauses=False, image_attributes=())  # there are none
    if variant == "smoke":
        _smoke(config)
    if variant == "titles":
        base.titles_alone(config)
        _titles(config)
    if small:
        base.one_gpu(config)
        _small(config)
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
        config.prompts.update(fields=("title",), text_tokens=12, similar=3)
        config.warmup.update(steps=150, noise=0.0)
        config.summarizer.update(steps=20, prompt_length=40)
        for name in base.SEQUENTIAL_MODELS:
            config[name].update(length=50, batch_size=32, steps=600)
            if "dropout" in config[name]:
                config[name].dropout = 0.3
        config.sft.update(steps=150, batch_size=16, length=384, rows=20_000, workers=0)
        config.evaluation.update(users=300, length=768)


def _titles(config: ConfigDict) -> None:
    """So small a model writes no keywords that would tell a film from others: it reads titles."""
    with config.unlocked():
        config.data.update(attribute_fields=("genres",), category_field=None)
        config.use.update(summaries=False, plain_sft=False)
        config.model.tiny.update(vocab_size=4096)
        config.prompts.update(
            fields=("title",), list_fields=("title",), text_tokens=8, history=20, similar=5
        )
        config.warmup.update(steps=60, noise=0.0)
        config.warmup.tasks = {"describe": 1.0}
        for name in base.SEQUENTIAL_MODELS:
            config[name].update(length=50, steps=4000, evaluate_every=250)
        config.cached.update(
            steps=800, num_items=320, prompt_length=224, item_patches=0, evaluate_every=200,
            validation_rows=1000, each_user_once=False, align=0.0,
        )  # fmt: skip
        config.sft.rows = 50_000  # of a million targets; a prompt's history has more of them
        config.evaluation.users = 2000


def _small(config: ConfigDict) -> None:
    """An image is 256 tokens, so a list has 4 candidates, and fewer users are tested."""
    with config.unlocked():
        config.warmup.update(
            pretrained=True, trainable="connector", steps=150, batch_size=16, length=2048,
            patches=1792, answers=8, targets=256, learning_rate=1e-3, warmup_steps=15, noise=0.0,
            checkpoint_every=50, log_every=10,
        )  # fmt: skip
        config.warmup.tasks = {"describe": 0.3, "see": 0.7, "vqa": 0.0, "retell": 0.0}
        config.summarizer.update(
            steps=30, batch_size=32, prompt_length=384, patches=256, micro_batch=64
        )
        config.summaries.batch_size = 128
        config.prompts.history_patches = 1280
        config.sft.update(steps=150, negatives=3, patches=3072)
        config.evaluation.update(users=500, length=7168, patches=5632, batch_size=8)


def _latest_small() -> ConfigDict:
    """Most users rate on one day, so that few have interactions before and after one moment: the
    target is the last interaction of validation and of test."""
    config = quickstart.get_config("mllm_srec")
    with config.unlocked():
        config.data.update(
            source="atomic",
            download_page="https://grouplens.org/datasets/movielens/latest/",
            text_fields=("title", "year", "genres"),
            attribute_fields=("genres", "year"),
            split="global_time",
            split_target="last",
            validation_quantile=0.7,
            test_quantile=0.8,
        )
        config.model.tiny.update(vocab_size=4096, image_size=56)
        config.prompts.update(
            fields=("genres", "year", "title"), text_tokens=16, history=20,
            image_attributes=(), attribute_separator=" ",
        )  # fmt: skip
        config.warmup.update(steps=200, patches=192, noise=0.0, wrong_answers=0.5)
        config.understanding.update(
            questions=("genres",), patches=16, answer_tokens=12, summary_tokens=24
        )
        config.preferences.update(
            window=16, step=8, positives="liked", prompt_length=256, max_new_tokens=48,
            batch_size=256,
        )  # fmt: skip
        config.writer.update(length=512, steps=120)
        for name in base.SEQUENTIAL_MODELS:
            config[name].update(length=50, batch_size=32, steps=1500, evaluate_every=50, patience=5)
            if "dropout" in config[name]:
                config[name].dropout = 0.3
        config.sft.rows = 20_000
        config.cached.update(
            steps=250, num_items=192, prompt_length=360, item_length=32, item_patches=16,
            words_length=24, each_user_once=False, evaluate_every=50, checkpoint_every=50,
            optimizer="adamw", learning_rate=1.5e-3,
        )  # fmt: skip
        config.evaluation.users = 0
    return config.lock()
