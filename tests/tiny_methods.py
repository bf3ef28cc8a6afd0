"""Both methods on a tiny shop, for tests that run them whole: flags, steps and texts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

COMMON = {
    "input_shards": 4,
    "data.toyshop.num_users": 100, "data.toyshop.num_items": 40, "data.toyshop.num_groups": 3,
    "model.tiny.hidden": 32, "model.tiny.layers": 1, "model.tiny.intermediate": 32,
    "model.tiny.vision_hidden": 24, "model.tiny.vision_layers": 1,
    "model.tiny.vision_intermediate": 24, "prompts.text_tokens": 8,
    # What `tensor` divides: the corpus would give a few tokens more.
    "model.tiny.vocab_size": 768,
    "warmup.steps": 6, "warmup.warmup_steps": 2, "warmup.checkpoint_every": 3,
    "warmup.log_every": 1, "warmup.batch_size": 8, "warmup.learning_rate": 1e-3,
    "sasrec.steps": 6, "sasrec.evaluate_every": 3, "sasrec.log_every": 1, "sasrec.batch_size": 8,
    "sasrec.dim": 8, "sft.steps": 4, "sft.warmup_steps": 1, "sft.checkpoint_every": 2,
    "sft.batch_size": 8, "sft.log_every": 1, "sft.validation_rows": 16,
    "forms": "('joint', 'cached')", "cached.steps": 4, "cached.evaluate_every": 4,
    "cached.warmup_steps": 1, "cached.checkpoint_every": 2, "cached.log_every": 1,
    "cached.num_users": 8, "cached.num_items": 16,
    "cached.validation_rows": 16, "cached.score_users": 8, "cached.score_items": 40,
    "evaluation.users": 20, "evaluation.batch_size": 8,
    "evaluation.rerank": 25, "evaluation.fuse": True,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Method:
    """One of the papers' methods on a tiny shop.

    Attributes:
      variant: of configs/quickstart.py.
      flags: fields of the config.
      loops: its steps that train.
      killed: its steps in which the run on several meshes is killed.
      texts: files of what the model wrote, byte by byte the same however many processes wrote it.
      ranks: how many files of ranks the evaluation leaves.
    """

    variant: str
    flags: Mapping[str, Any]
    loops: tuple[str, ...]
    killed: tuple[str, ...]
    texts: tuple[str, ...]
    ranks: int


METHODS = {
    "mmsrarec": Method(
        variant="",
        flags=COMMON
        | {
            "summarizer.steps": 2, "summarizer.batch_size": 8, "summarizer.num_generations": 2,
            "summarizer.micro_batch": 16, "summarizer.distractors": 2,
            "summarizer.max_new_tokens": 8, "summarizer.log_every": 1,
            "summarizer.checkpoint_every": 1, "summaries.batch_size": 8,
        },
        loops=("warmup", "summarizer", "sasrec", "plain_sft", "sft", "cached"),
        killed=("warmup", "summarizer", "summaries", "sft", "cached", "evaluation"),
        texts=("summaries/summaries",),
        ranks=27,
    ),
    "mllm_srec": Method(
        variant=":mllm_srec",
        flags=COMMON
        | {
            "understanding.batch_size": 8, "writer.steps": 4, "writer.warmup_steps": 1,
            "writer.checkpoint_every": 2, "writer.batch_size": 8, "writer.log_every": 1,
            "preferences.batch_size": 32, "preferences.max_new_tokens": 6,
            "chain.scoring": "generated",
            # So few words in the vocabulary make prompts longer than on the quickstart.
            "preferences.prompt_length": 200, "cached.prompt_length": 240, "sft.length": 1280,
            "sft.targets": 320, "evaluation.length": 2400,
        },
        loops=("warmup", "sasrec", "writer", "chain_sft", "chain_cached"),
        killed=(
            "visual_answers", "item_texts", "writer", "preferences", "profiles", "chain_sft",
            "chain_cached", "evaluation",
        ),
        texts=(
            "visual_answers/answers", "item_texts/summaries", "preferences/preferences",
            "profiles/profiles", "evaluation/chains-joint", "evaluation/chains-cached",
        ),
        ranks=24,
    ),
}  # fmt: skip
