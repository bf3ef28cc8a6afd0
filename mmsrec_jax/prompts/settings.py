"""Which sentences, items and texts the prompts hold."""

import dataclasses

from mmsrec_jax.prompts.templates import TEMPLATES
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import Section, setting


@dataclasses.dataclass(frozen=True)
class PromptSettings(Section):
    """What prompts say of items and users. Training and scoring read the same."""

    templates: str = setting(
        "full", "English sentences, or terse ones for tiny models.", choices=tuple(TEMPLATES)
    )
    history: int = setting(
        5, "Last items of a user in a prompt (paper: n = 5).", low=0, high=10_000
    )
    history_patches: int = setting(
        4096,
        "Vision patches that the history's images may have in a prompt of plain SFT, beside the "
        "candidates'; the oldest items show theirs last. 0: the history has no images.",
        low=0,
        high=1_000_000,
    )
    ratings: bool = setting(False, "Items of the history show how the user rated them (ours).")
    pauses: bool = setting(
        False, "Items of the history show how long after them the user chose again, or asks (ours)."
    )
    similar: int = setting(
        3, "Next items of similar users in a prompt (paper: k = 3).", low=1, high=10_000
    )
    aggregate: int = setting(
        0,
        "Similar users' next items are shown as so many keywords, each with the number of these "
        "users, most first (ours). 0: as a list of items.",
        low=0,
        high=10_000,
    )
    fields: tuple[str, ...] = setting(
        ("title", "description"), "Text fields of an item that is described or a candidate."
    )
    list_fields: tuple[str, ...] = setting(
        ("title",), "Text fields of an item in a list when it has no keywords."
    )
    candidate_keywords: bool = setting(
        False,
        "Candidates show image, `list_fields` and keywords, in place of image and `fields` (ours).",
    )
    text_tokens: int = setting(
        256, "Longer texts of an item lose their tail.", low=0, high=1_000_000
    )
    image_attributes: tuple[str, ...] = setting((), "Attributes that the image shows (warm-up).")
    attribute_separator: str | None = setting(
        None,
        "Between the values of one attribute, such as a space between genres: each is a keyword of "
        "its own (warm-up). None: an attribute has one value.",
    )

    def check(self, name: str) -> None:
        if self.attribute_separator == "":
            raise UserError(
                f"{name}.attribute_separator='': nothing can be split there; give what stands "
                "between the values of an attribute, or None"
            )
