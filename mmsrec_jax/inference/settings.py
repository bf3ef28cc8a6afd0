"""How an MLLM passes over a whole catalog: to write keywords or summaries, to make features."""

import dataclasses

from mmsrec_jax.data.shown_images import SHOWN
from mmsrec_jax.inputs.understanding import BOTH_VQA, MODES
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import Section, seed_setting, setting


@dataclasses.dataclass(frozen=True)
class SummariesSettings(Section):
    """Keywords of the whole catalog."""

    batch_size: int = setting(256, "Items written of at a time.", low=1, high=1_000_000)


@dataclasses.dataclass(frozen=True)
class FeatureSettings(Section):
    """Item features that the model in `model.path` makes for a sequential model."""

    length: int = setting(
        640,
        "Tokens of a row: an item with its image, or the texts of many items.",
        low=1,
        high=1_000_000,
    )
    patches: int = setting(2048, "Vision patches of a prompt.", low=0, high=1_000_000)
    batch_size: int = setting(32, "Rows read at a time.", low=1, high=1_000_000)
    workers: int = setting(
        8, "Processes that make batches. 0 is threads of the main process.", low=0, high=1024
    )


@dataclasses.dataclass(frozen=True)
class UnderstandingSettings(Section):
    """Item understanding of MLLM-SRec: questions about pictures, then one summary an item."""

    mode: str = setting(
        BOTH_VQA,
        "What a summary is written from: the text, the image, both, or the answers to the "
        "questions about the image and the text (paper: both_vqa).",
        choices=MODES,
    )
    questions: tuple[str, ...] = setting(
        ("What is it?", "How does it look?", "For whom is it?", "What is it for?"),
        "Asked about every image in mode both_vqa (ours).",
    )
    images: str = setting(
        "own",
        "Which images items show here: their own, or, to measure what images are worth, another "
        "item's or an empty one.",
        choices=SHOWN,
    )
    seed: int = seed_setting("Of shuffled images and of the examples.")
    batch_size: int = setting(256, "Prompts at a time.", low=1, high=1_000_000)
    prompt_length: int = setting(1024, "Tokens of a prompt.", low=1, high=1_000_000)
    patches: int = setting(4096, "Vision patches of a prompt.", low=0, high=1_000_000)
    answer_tokens: int = setting(
        24, "Tokens of an answer about an image, at most.", low=1, high=100_000
    )
    summary_tokens: int = setting(64, "Tokens of a summary, at most.", low=1, high=100_000)
    gather_weights: bool = setting(
        True,
        "Gather sharded weights once a batch, not once a token. False where they do not fit.",
        recorded=False,
    )
    examples: int = setting(
        24,
        "Items whose image, summary and checked claims are kept for people to read.",
        low=0,
        high=1_000_000,
    )

    def check(self, name: str) -> None:
        if self.mode == BOTH_VQA and not self.questions:
            raise UserError(
                f"{name}.mode={self.mode!r} asks {name}.questions, but there are none; name some, "
                "or set the mode to both"
            )
