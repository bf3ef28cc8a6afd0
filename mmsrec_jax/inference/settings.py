"""How an MLLM passes over a whole catalog: to write keywords, to make item features."""

import dataclasses

from mmsrec_jax.runtime.settings import Section, setting


@dataclasses.dataclass(frozen=True)
class SummariesSettings(Section):
    """Keywords of the whole catalog."""

    batch_size: int = setting(256, "Items written of at a time.", low=1)


@dataclasses.dataclass(frozen=True)
class FeatureSettings(Section):
    """Item features that the model in `model.path` makes for a sequential model."""

    length: int = setting(
        640, "Tokens of a row: an item with its image, or the texts of many items.", low=1
    )
    patches: int = setting(2048, "Vision patches of a prompt.", low=0)
    batch_size: int = setting(32, "Rows read at a time.", low=1)
    workers: int = setting(
        8, "Processes that make batches. 0 is threads of the main process.", low=0
    )
