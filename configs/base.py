"""Every field of an experiment with its default. Experiments start from here and change some.

    from configs import base
    config = base.get_config()
    config.sft.steps = 500

The fields, their defaults and their ranges: docs/configuration.md. They stand in the code as
settings classes beside what reads them, composed in mmsrec_jax/methods/settings.py.

MMSRARec on a folder of atomic files, with a pretrained model (for a small one from scratch on a CPU
take configs/quickstart.py:own):

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

_OF_A_SIZE = (
    "dim", "layers", "heads", "mlp_dim", "dropout", "loss_chunk", "batch_size", "steps",
    "evaluate_every", "patience",
)  # fmt: skip


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: a sequential recommender by itself; empty for MMSRARec."""
    choose(variant, {"": "MMSRARec", **SEQUENTIAL_MODELS}, file="configs/base.py")
    settings = Settings(method="sequential", sequential_model=variant) if variant else Settings()
    return to_config(settings).lock()


def titles_alone(config: ConfigDict) -> None:
    """MMSRARec with a language model that sees no images."""
    with config.unlocked():
        config.use.images = False
        config.summarizer.weights.image_contrastive = 0.0


def title_features(config: ConfigDict) -> None:
    """SASRec, and Molar and HM4SR of its size on what a language model makes of titles."""
    size = config.sasrec
    with config.unlocked():
        config.also_sequential = ("molar", "hm4sr")
        config.model.update(require_path=True, dtype="float32")
        config.use.images = False
        config.prompts.update(fields=("title",), list_fields=("title",), text_tokens=48)
        config.features.update(length=128, batch_size=64, workers=0)
        for name in config.also_sequential:
            config[name].update({field: size[field] for field in _OF_A_SIZE}, contents=("text",))


def one_gpu(config: ConfigDict) -> None:
    """MMSRARec with a language model of about 135M parameters on one GPU of 80 GB in minutes.

    Adapters of rank 8 are trained and not every weight: what a run has to keep of a step is then
    tens of megabytes. Lengths are those of the prompts of short titles.
    """
    with config.unlocked():
        config.model.update(require_path=True, remat="dots")
        config.prompts.update(fields=("title",), list_fields=("title",), text_tokens=32)
        config.summarizer.update(
            steps=60, batch_size=64, num_generations=8, prompt_length=128, max_new_tokens=32,
            micro_batch=512, lora_rank=8, lora_alpha=16.0, learning_rate=1e-4, warmup_steps=5,
            checkpoint_every=20, log_every=5,
        )  # fmt: skip
        config.summaries.batch_size = 512
        config.features.update(length=512, batch_size=64)
        config.retrieval.distinct_items = True
        config.sft.update(
            steps=300, batch_size=16, length=4096, answers=96, targets=192, lora_rank=8,
            lora_alpha=16.0, learning_rate=4e-4, warmup_steps=15, listwise_weight=1.0,
            checkpoint_every=100, log_every=10,
        )  # fmt: skip
        # Three lists of 21 candidates a user are what the MLLMs reorder of the whole catalog.
        config.evaluation.update(users=5000, length=1536, batch_size=64, rerank=63, fuse=True)


def cached_titles(config: ConfigDict) -> None:
    """After `one_gpu`: stage 3 with cached items, and titles as they are.

    So small a model, which is not tuned by rewards, repeats them instead of keywords.
    """
    with config.unlocked():
        config.forms = ("cached",)
        config.use.update(summaries=False, plain_sft=False)
        config.prompts.update(templates="terse", history=8, similar=8, text_tokens=20)
        config.cached.update(
            trainable="full", steps=1500, num_users=32, num_items=256, prompt_length=352,
            item_length=28, learning_rate=2e-4, warmup_steps=30, evaluate_every=500,
            validation_rows=250, checkpoint_every=250, log_every=20, score_users=32,
            score_items=1024,
        )  # fmt: skip
        config.sft.rows = 50_000
        config.evaluation.update(users=2000, rerank=0, fuse=True)
