"""The pod experiment: MMSRARec or MLLM-SRec with Qwen2.5-VL-7B on Amazon Beauty, on a TPU v5e-64;
sequential models beside.

    python launch/train.py --config=configs/beauty.py --config.data.root=DIR/beauty \\
        --config.model.path=DIR/Qwen2.5-VL-7B-Instruct --workdir=runs/beauty
    python launch/train.py --config=configs/beauty.py --config.data.root=DIR/amazon2014 \\
        --config.data.source=amazon_reviews_2014/Beauty --config.data.download=True \\
        --config.model.path=DIR/Qwen2.5-VL-7B-Instruct --workdir=runs/beauty
    python launch/compile.py --config=configs/beauty.py --topology=v5e:8x8
    python launch/train.py --config=configs/beauty.py:mllm_srec --config.data.root=DIR/beauty \\
        --config.model.path=DIR/Qwen2.5-VL-7B-Instruct --workdir=runs/beauty-srec
    python launch/train.py --config=configs/beauty.py:sasrec --config.data.root=DIR/beauty \\
        --workdir=runs/beauty-sasrec
    python launch/train.py --config=configs/beauty.py:molar --config.data.root=DIR/beauty \\
        --config.model.path=DIR/Qwen2.5-VL-7B-Instruct --workdir=runs/beauty-molar
    python launch/train.py --config=configs/beauty.py:features \\
        --config.data.root=DIR/beauty --config.model.path=DIR/SmolLM2-135M \\
        --workdir=runs/beauty-features

DIR/amazon2014 holds reviews_Beauty_5.json.gz and meta_Beauty.json.gz as they were published, which
the second command downloads, and images/<asin>.jpg where there are any (docs/data.md); all other
commands take the same three flags.
DIR/beauty holds beauty.inter, beauty.item and images/<item_id>.jpg, RecBole atomic files.
"""

from ml_collections import ConfigDict

from configs import base
from mmsrec_jax.runtime.config_utils import choose

_VARIANTS = {
    "": "7B on a v5e-64",
    "mllm_srec": "MLLM-SRec, 7B on a v5e-64",
    "small": "135M on one GPU, titles alone",
    "cached": "135M on one GPU, titles alone, items cached: the whole catalog is ranked",
    "features": "SASRec, Molar and HM4SR; the last two read what 135M make of titles",
    **base.SEQUENTIAL_MODELS,
}

# The best on validation of three tried; one layer, as in eSASRec's own Beauty recipe.
SASREC = {
    "dim": 128, "layers": 1, "heads": 1, "mlp_dim": 128, "dropout": 0.5, "loss_chunk": 800,
    "batch_size": 32, "steps": 8300, "evaluate_every": 166, "patience": 3,
}  # fmt: skip


def get_config(variant: str = "") -> ConfigDict:
    choose(variant, _VARIANTS, file="configs/beauty.py")
    small = variant in ("small", "cached")
    pod = variant in ("", "mllm_srec")
    alone = "sasrec" if variant == "features" else variant
    config = base.get_config("" if small or pod else alone)
    with config.unlocked():
        config.data.download_page = "https://snap.stanford.edu/data/amazon/productGraph/"
        config.sasrec.update(SASREC)
        config.bert4rec.update(
            mask_rate=0.4, last_rate=0.15, batch_size=32, steps=19_200, evaluate_every=480,
            patience=6, loss_chunk=128,
        )  # fmt: skip
        config.gru4rec.update(
            dropout=0.4, learning_rate=2e-3, batch_size=32, steps=4150, evaluate_every=249,
            patience=3, loss="sampled_softmax", negatives=512,
        )  # fmt: skip
        config.hm4sr.category_separator = ","
        config.model.max_pixels = 0 if small else 128 * 28 * 28
    if small:
        base.one_gpu(config)
        base.titles_alone(config)
    if variant == "cached":
        base.cached_titles(config)
    if variant == "features":
        base.title_features(config)
    if pod:
        _pod(config)
    if variant == "mllm_srec":
        _mllm_srec(config)
    return config.lock()


def _pod(config: ConfigDict) -> None:
    with config.unlocked():
        config.mesh.update(data=1, fsdp=64, tensor=1)
        for name in ("sasrec", "bert4rec", "gru4rec"):
            config[name].batch_size = 64  # a row for every chip
        config.model.require_path = True
        config.planning.model = "qwen2.5-vl-7b"
        config.prompts.update(fields=("title", "description"), text_tokens=128)
        # A v5e has no room for 7B undivided; with mesh.fsdp=16, mesh.tensor=4 it has: docs/pods.md.
        config.summarizer.update(
            batch_size=64, num_generations=8, micro_batch=512, patches=640, gather_weights=False
        )
        config.sft.update(steps=3000, batch_size=64, length=2048, patches=4608, answers=16)
        config.evaluation.update(length=6144, patches=12288, batch_size=64)


def _mllm_srec(config: ConfigDict) -> None:
    """Half of the users have 6 items or fewer: windows are short."""
    with config.unlocked():
        config.method = "mllm_srec"
        config.prompts.update(ratings=True, pauses=True)
        config.understanding.update(batch_size=64, patches=640, gather_weights=False)
        config.preferences.update(
            window=6, step=3, max_windows=3, batch_size=256, prompt_length=384, gather_weights=False
        )
        config.sft.update(length=3072, targets=768)
        config.evaluation.length = 8192
