"""The settings of `experiment.py`: an experiment of configs/ at a fraction of its size.

    python launch/train.py --config=benchmarks/accelerator/plan.py:beauty,small,scale=0.5 ...

After the colon stand the data set, a variant of its file in configs/, and `scale=FRACTION` and
`tiny` where they are wanted. `scale` is the fraction of updates, of users and of test users;
`tiny` is for two CPU cores: float32 and small batches.
"""

from ml_collections import ConfigDict

from configs import base, beauty, microlens, movielens
from mmsrec_jax.runtime.config_utils import choose_name
from mmsrec_jax.runtime.errors import UserError

_FILES = {"beauty": beauty, "microlens": microlens, "ml-1m": movielens}
USERS = {"beauty": 22_363, "microlens": 50_000, "ml-1m": 6_040}
"""Users of the data sets before they are filtered."""


def get_config(given: str) -> ConfigDict:
    data, variant, *options = given.split(",")
    file = _FILES[choose_name(data, _FILES, what="data set")]
    config = file.get_config(variant)
    scale, tiny = 1.0, False
    for option in options:
        if option == "tiny":
            tiny = True
        elif option.startswith("scale="):
            scale = float(option.removeprefix("scale="))
        else:
            raise UserError(f"plan.py:{given}: {option!r} is neither tiny nor scale=FRACTION")
    if not 0 < scale <= 1:
        raise UserError(f"plan.py:{given}: scale must be above 0 and at most 1")
    with config.unlocked():
        if variant in base.SEQUENTIAL_MODELS:
            _features_of_titles(config)
        if scale < 1:
            _scaled(config, scale, USERS[data])
        if tiny:
            _tiny(config)
    return config.lock()


def _features_of_titles(config: ConfigDict) -> None:
    """Content-aware models read what the language model makes of the texts alone."""
    base.titles_alone(config)
    config.prompts.update(fields=("title",), list_fields=("title",), text_tokens=48)
    config.features.update(length=128, batch_size=256)
    config.molar.contents = config.hm4sr.contents = ("text",)


def _scaled(config: ConfigDict, scale: float, users: int) -> None:
    config.data.update(max_users=round(users * scale), user_core=2, item_core=2)
    for section in ("warmup", "summarizer", "sft"):
        part = config[section]
        part.steps = max(2, round(part.steps * scale))
        part.warmup_steps = min(part.warmup_steps, part.steps // 2)
        part.log_every = min(part.log_every, max(1, part.steps // 2))
        part.checkpoint_every = min(part.checkpoint_every, max(1, part.steps // 2))
    cached = config.cached
    cached.evaluate_every = max(1, round(cached.evaluate_every * scale))
    cached.steps = cached.evaluate_every * max(
        2, round(cached.steps * scale / cached.evaluate_every)
    )
    cached.warmup_steps = min(cached.warmup_steps, cached.steps // 2)
    cached.update(checkpoint_every=cached.evaluate_every, log_every=cached.evaluate_every)
    cached.validation_rows = max(10, round(cached.validation_rows * scale))
    for name in base.SEQUENTIAL_MODELS:
        part = config[name]
        part.evaluate_every = max(10, round(part.evaluate_every * scale))
        part.steps = max(20, round(part.steps * scale))
        part.log_every = min(part.log_every, part.evaluate_every)
        part.warmup_steps = min(part.warmup_steps, part.steps // 2)
    if config.evaluation.users:
        config.evaluation.users = max(10, round(config.evaluation.users * scale))


def _tiny(config: ConfigDict) -> None:
    config.model.update(dtype="float32", remat="none")
    config.prompts.text_tokens = 16
    config.summarizer.update(
        batch_size=2, num_generations=4, micro_batch=8, max_new_tokens=8, prompt_length=80,
        workers=0,
    )  # fmt: skip
    config.summaries.batch_size = 32
    config.features.update(batch_size=16, workers=0)
    config.sft.update(batch_size=1, length=1024, answers=24, targets=96, workers=0)
    config.cached.update(
        num_users=4, num_items=16, score_users=4, score_items=64, workers=0, validation_rows=4
    )
    rerank = 21 if "joint" in config.forms else 0
    config.evaluation.update(users=10, rerank=rerank, length=1024, batch_size=2, workers=0)
    if config.use.images:  # 256 tokens each
        config.warmup.update(batch_size=1, length=1024, patches=768, targets=64, workers=0)
        config.summarizer.update(prompt_length=384, distractors=1)
        config.summaries.batch_size = 4
        config.sft.update(length=2048, patches=1280)
        config.evaluation.update(length=8192, batch_size=1)
