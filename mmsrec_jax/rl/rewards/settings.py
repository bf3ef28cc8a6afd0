"""What rewards are told."""

import dataclasses

from mmsrec_jax.runtime.settings import Section, setting


@dataclasses.dataclass(frozen=True)
class RewardSettings(Section):
    """The part of `config.summarizer` that rewards read."""

    max_new_tokens: int = setting(64, "Most tokens of a summary.", low=1, high=100_000)
    length: str = setting(
        "keywords", "What the length reward counts.", choices=("keywords", "tokens")
    )
    reconstruction: str = setting(
        "bounded",
        "Share of the text's nats that the keywords explain, or the paper's own.",
        choices=("bounded", "perplexity"),
    )
    center: bool = setting(True, "Subtract the batch's mean from embeddings (semantic reward).")
    image_tokens: int = setting(
        32,
        "Tokens of the image's keywords that the image-contrastive reward reads.",
        low=1,
        high=100_000,
    )
    distractors: int = setting(
        7,
        "Other images that an image's keywords are told from (image-contrastive reward).",
        low=1,
        high=100_000,
    )
