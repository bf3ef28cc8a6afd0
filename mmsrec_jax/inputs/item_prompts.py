"""Prompts whose rows are items."""

import abc
import dataclasses
from collections import Counter
from collections.abc import Callable

import numpy as np

from mmsrec_jax.data.records import Catalog
from mmsrec_jax.inputs import example as examples
from mmsrec_jax.inputs.example import Example
from mmsrec_jax.inputs.item_renderer import ItemRenderer, PromptConfig
from mmsrec_jax.inputs.truncation import limits
from mmsrec_jax.prompts import tasks
from mmsrec_jax.prompts.templates import IMAGE
from mmsrec_jax.runtime.errors import UserError

_NONE = np.zeros(0, np.int32)


class PerItem(abc.ABC):
    """Sources whose rows are the items of a catalog; `Example.index` is the item.

    length: room for a prompt, in tokens, with its answer if it has one.
    """

    def __init__(self, catalog: Catalog, prompt_config: PromptConfig, *, length: int):
        self.renderer, self.length = ItemRenderer(catalog, prompt_config), length
        if len(catalog) == 0:
            raise UserError("there are no items to write prompts for")

    def __len__(self) -> int:
        return len(self.renderer)

    @property
    def patch_width(self) -> int:
        """Values of a vision patch, 0 without images."""
        return self.renderer.patch_width

    @abc.abstractmethod
    def example(self, row: int, draw: int) -> Example: ...

    def _answered(self, i: int, ask: Callable[[str, bool], str], answer: np.ndarray) -> Example:
        chat = self.renderer.prompt_config.chat
        for limit, last in limits(self.renderer.prompt_config.text_tokens):
            counts: Counter[str] = Counter()
            image, text = self.renderer.image(i, counts), self.renderer.text(i, limit, counts)
            prompt = chat.encode(
                chat.head + ask(text, image is not None) + chat.middle,
                () if image is None else (image,),
            )
            if len(prompt) + len(answer) <= self.length or last:
                break
        return examples.sequence(prompt, answer, index=i, counts=counts)


class SummarySource(PerItem):
    """Stage 1's prompts without answers."""

    def example(self, row: int, draw: int) -> Example:
        del draw
        templates = self.renderer.prompt_config.templates
        return self._answered(
            row,
            lambda text, has_image: tasks.summarize(templates, text, has_image),
            _NONE,
        )


class ContentSource(PerItem):
    """Items without a question, for what a model makes of them.

    The opening of the conversation, the image, the text. Tokens of the text have loss weight 1, so
    that whoever pools tells them from the opening.

    content: "text", "image" or "item", which is both. An item without any is the opening alone.
    """

    def __init__(
        self,
        catalog: Catalog,
        prompt_config: PromptConfig,
        *,
        length: int,
        content: str,
    ):
        if content == "text":
            prompt_config = dataclasses.replace(prompt_config, processor=None)
        super().__init__(catalog, prompt_config, length=length)
        self._text = content != "image"

    def example(self, row: int, draw: int) -> Example:
        del draw
        chat = self.renderer.prompt_config.chat
        for limit, last in limits(self.renderer.prompt_config.text_tokens):
            counts: Counter[str] = Counter()
            image = self.renderer.image(row, counts)
            text = self.renderer.text(row, limit, counts) if self._text else ""
            opening = chat.head if image is None else chat.head + IMAGE
            prompt = chat.encode(opening, () if image is None else (image,))
            own = chat.ids(text)
            if len(prompt) + len(own) <= self.length or last:
                break
        return examples.sequence(prompt, own, index=row, counts=counts)
