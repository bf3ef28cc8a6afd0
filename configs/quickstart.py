r"""MMSRARec on the toyshop: a tiny model from scratch, every step, on two CPU cores; MLLM-SRec.

    python launch/train.py --config=configs/quickstart.py --workdir=runs/quickstart
    python launch/train.py --config=configs/quickstart.py:full --workdir=runs/quickstart-full
    python launch/train.py --config=configs/quickstart.py:long --workdir=runs/quickstart-long
    python launch/train.py --config=configs/quickstart.py:seeds --workdir=runs/quickstart-seeds
    python launch/train.py --config=configs/quickstart.py:mllm_srec --workdir=runs/mllm_srec
    python launch/train.py --config=configs/quickstart.py:own --config.data.root=shop \
        --workdir=runs/small
    python launch/train.py --config=configs/quickstart.py:both --workdir=runs/both

`full` has every row and form: the joint form, its reranking of the catalog and its generated
keywords, SFT without images, Molar, HM4SR, and 1+99 candidates beside 1+20. `long` trains the
cached form for about an hour. `seeds` is the quickstart under three seeds, one after the other, in
seed-0, seed-1 and seed-2 of its workdir; a command that was stopped goes on, and the table has
means and paired intervals. The same of another variant: --config.seeds="(0, 1, 2)". `own` is the
quickstart on a folder of atomic files, of any size (docs/faq.md).

`both` runs MMSRARec and MLLM-SRec one after the other, in mmsrarec and mllm_srec of its workdir.
What both need is made once, and one table has the rows of both with paired intervals;
--reuse=runs/quickstart takes what that run has. `config.mllm_srec` is what the second has
otherwise: --config.cached.steps=700 sets MMSRARec's, --config.mllm_srec.cached.steps=700
MLLM-SRec's.
"""

from ml_collections import ConfigDict

from configs import base
from mmsrec_jax.runtime.config_utils import choose

_VARIANTS = {
    "": "the whole quickstart",
    "full": "every row and form",
    "long": "one hour of two cores",
    "seeds": "three seeds and one table",
    "mllm_srec": "MLLM-SRec on the same shop",
    "own": "your data: a small model from scratch, without a GPU",
    "both": "both methods and one table",
}
# What MLLM-SRec alone reads.
_TASTES = {
    "understanding": dict(
        questions=("color", "pattern"), batch_size=100, prompt_length=80, patches=4,
        answer_tokens=4, summary_tokens=16,
    ),
    "preferences": dict(
        window=4, step=2, max_windows=3, positives="all", words=4, prompt_length=104,
        max_new_tokens=24, batch_size=512,
    ),
    "writer": dict(
        trainable="full", steps=300, batch_size=12, length=384, patches=0, targets=128,
        answers=1, learning_rate=3e-3, warmup_steps=20, workers=0, look_ahead=0,
        checkpoint_every=50, log_every=10,
    ),
}  # fmt: skip
# What MLLM-SRec has otherwise.
_MLLM_SREC = {
    "warmup": {
        "steps": 120,  # less is to be learned than for MMSRARec
        "tasks": dict(describe=0.0, see=0.0, vqa=0.1, retell=0.0, look=0.4, fuse=0.5),
    },
    "use": {"plain_sft": False},  # a row of the other method's table
    "sft": {"targets": 160, "length": 640},
    "cached": dict(steps=1050, prompt_length=160, history_end=True),
    "evaluation": {"length": 1536},
}


def get_config(variant: str = "") -> ConfigDict:
    choose(variant, _VARIANTS, file="configs/quickstart.py")
    config = base.get_config()
    with config.unlocked():
        config.data.source = "toyshop"
        config.data.toyshop.num_users = 16_000
        config.model.update(dtype="float32", remat="none")
        config.prompts.update(
            templates="terse",
            history=11,
            history_patches=24,
            ratings=True,
            pauses=True,
            similar=5,
            text_tokens=64,
            candidate_keywords=True,  # so small a model does not compare a picture with words
            image_attributes=("color", "pattern"),
        )
        config.warmup.update(
            trainable="full", steps=260, batch_size=12, length=384, patches=72, targets=128,
            answers=1, learning_rate=3e-3, warmup_steps=20, workers=0, look_ahead=0,
            checkpoint_every=50, log_every=10,
        )  # fmt: skip
        config.warmup.noise = 0.15
        config.summarizer.update(
            steps=40, batch_size=16, prompt_length=72, patches=4, image_tokens=12,
            max_new_tokens=20, micro_batch=128, learning_rate=1e-3, warmup_steps=5, workers=0,
            checkpoint_every=20, log_every=2, lora_rank=8, lora_alpha=16.0, kl_coef=0.02,
            distractors=7,
        )  # fmt: skip
        config.summarizer.weights.update(
            semantic=0.5, reconstruction=4.0, length=0.02, image_contrastive=1.0, format=1.0
        )
        config.summaries.batch_size = 100
        for name in base.SEQUENTIAL_MODELS:
            config[name].update(
                length=12, batch_size=64, steps=2400, evaluate_every=100, patience=3,
                validation_rows=2000, learning_rate=2e-3, warmup_steps=50,
            )  # fmt: skip
            if "dropout" in config[name]:
                config[name].dropout = 0.2
        config.sasrec.mlp_dim = 128
        config.features.update(length=48, patches=4, batch_size=125, workers=0)
        config.retrieval.distinct_items = True
        config.sft.update(
            trainable="full", steps=150, batch_size=10, length=480, patches=32, answers=8,
            targets=64, learning_rate=1e-3, warmup_steps=10, listwise_weight=1.0, workers=0,
            look_ahead=0, checkpoint_every=50, log_every=5, evaluate_every=50, validation_rows=250,
        )  # fmt: skip
        config.sft.tasks.update(pointwise=0.85, rank=0.05, next_keywords=0.05, align=0.05)
        config.forms = ("cached",)
        config.cached.update(
            trainable="full", steps=1400, num_users=32, num_items=224, prompt_length=128, tail=0,
            each_user_once=True, item_length=16, item_patches=4, words_length=16,
            next_in_history=0.5, optimizer="muon", learning_rate=2.5e-3, warmup_steps=20, workers=0,
            evaluate_every=350, validation_rows=1000, checkpoint_every=175, log_every=10,
            score_users=32, score_items=512, history_end=False,
        )  # fmt: skip
        config.evaluation.update(
            users=1500, length=1280, patches=84, batch_size=16, workers=0, fuse=True
        )
        if variant == "full":
            _every_row(config)
        elif variant == "long":
            config.cached.update(steps=7000, each_user_once=False)  # few examples come twice
        elif variant == "seeds":
            config.seeds = (0, 1, 2)
        elif variant == "mllm_srec":
            config.method = "mllm_srec"
            config.update(_TASTES)
            config.update(_MLLM_SREC)
        elif variant == "both":
            config.method = "both"
            config.update(_TASTES)
            config.mllm_srec.update(_MLLM_SREC)
    if variant == "own":
        _own(config)
    return config.lock()


def _every_row(config: ConfigDict) -> None:
    config.forms = ("cached", "joint")
    config.also_sequential = ("molar", "hm4sr")
    config.use.text_sft = True
    config.evaluation.update(negatives=(20, 99), rerank=100, generate=20)


def _own(config: ConfigDict) -> None:
    """Files need no more than users, items and titles. Words of real titles are more tokens than
    those of the toyshop, so that prompts show fewer items in more room."""
    with config.unlocked():
        config.data.source = "atomic"
        config.model.tiny.vocab_size = 2048
        config.use.plain_sft = False
        config.prompts.update(
            ratings=False, pauses=False, image_attributes=(), history=8, similar=3, text_tokens=48
        )
        config.summarizer.update(prompt_length=80, max_new_tokens=32)
        for name in base.SEQUENTIAL_MODELS:
            config[name].length = 50
        config.cached.update(
            steps=1000, num_items=128, prompt_length=256, item_length=48, words_length=48,
            each_user_once=False, evaluate_every=250, history_end=True,
        )  # fmt: skip
