"""Prompts whose rows are items."""

import abc
import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from mmsrec_jax.data.records import Catalog
from mmsrec_jax.inputs import example as examples
from mmsrec_jax.inputs.example import Example
from mmsrec_jax.inputs.item_renderer import ItemRenderer, PromptConfig
from mmsrec_jax.inputs.truncation import limits
from mmsrec_jax.prompts import tasks
from mmsrec_jax.prompts.templates import IMAGE
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.progress import track

_NONE = np.zeros(0, np.int32)
_MOST_ITEMS = 128  # of a row: that many vectors a row come back from the device


class PerItem(abc.ABC):
    """Sources whose rows are the items of a catalog; `Example.index` is the item.

    length: room for a prompt, in tokens, with its answer if it has one.
    """

    def __init__(
        self,
        catalog: Catalog,
        prompt_config: PromptConfig,
        *,
        length: int,
        keywords: Sequence[str] | None = None,
    ):
        self.renderer, self.length = ItemRenderer(catalog, prompt_config, keywords), length
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

    content: "image", or "item", which is image and text. An item without any is the opening alone.
    keywords: per item, of a text that shows them (`ItemRenderer.candidate_text`).
    """

    def __init__(
        self,
        catalog: Catalog,
        prompt_config: PromptConfig,
        *,
        length: int,
        content: str,
        keywords: Sequence[str] | None = None,
    ):
        super().__init__(catalog, prompt_config, length=length, keywords=keywords)
        self._text = content != "image"

    def example(self, row: int, draw: int) -> Example:
        del draw
        chat = self.renderer.prompt_config.chat
        for limit, last in limits(self.renderer.prompt_config.text_tokens):
            counts: Counter[str] = Counter()
            image = self.renderer.image(row, counts)
            text = self.renderer.candidate_text(row, limit, counts) if self._text else ""
            opening = chat.head if image is None else chat.head + IMAGE
            prompt = chat.encode(opening, () if image is None else (image,))
            own = chat.ids(text)
            if len(prompt) + len(own) <= self.length or last:
                break
        return examples.sequence(prompt, own, index=row, counts=counts)


class TextSource:
    """Texts of items, for what a model makes of each: many in a row.

    A row is the opening of the conversation, which they share, and the texts of consecutive items,
    suffixes that do not see each other. An item is read as a `ContentSource` shows it without an
    image, but for an opening and padding of its own. Tokens of texts have loss weight 1;
    `Example.index` is the row.

    Args:
      length: room of a row, in tokens; a text that is longer alone loses its tail.
      keywords: as of `ContentSource`.

    Attributes:
      first: int64[rows + 1], the first item of each row, and the number of items.
      most: largest number of items in a row.
    """

    patch_width = 0

    def __init__(
        self,
        catalog: Catalog,
        prompt_config: PromptConfig,
        *,
        length: int,
        keywords: Sequence[str] | None = None,
    ):
        if len(catalog) == 0:
            raise UserError("there are no items to write prompts for")
        chat = prompt_config.chat
        self.length, self._opening = length, chat.encode(chat.head)
        self._room = length - len(self._opening)
        if self._room < 1:
            raise UserError(
                f"a row of {length} tokens has no room for a text after the {len(self._opening)} "
                "of the chat template's opening; raise config.features.length"
            )
        self._renderer = ItemRenderer(
            catalog, dataclasses.replace(prompt_config, processor=None), keywords
        )
        first, used = [0], 0
        for i in track(range(len(catalog)), "read texts", len(catalog), "items"):
            needed = len(self._text(i, Counter()))
            if used + needed > self._room or i - first[-1] == _MOST_ITEMS:
                first.append(i)
                used = 0
            used += needed
        self.first = np.array([*first, len(catalog)])
        self.most = int(np.diff(self.first).max())

    def __len__(self) -> int:
        return len(self.first) - 1

    def example(self, row: int, draw: int) -> Example:
        del draw
        counts: Counter[str] = Counter()
        items = range(self.first[row], self.first[row + 1])
        texts = [self._text(i, counts) for i in items]
        return examples.side_by_side(self._opening, texts, index=row, counts=counts)

    def _text(self, i: int, counts: Counter) -> np.ndarray:
        prompt_config = self._renderer.prompt_config
        for limit, last in limits(prompt_config.text_tokens):
            cut: Counter[str] = Counter()
            own = prompt_config.chat.ids(self._renderer.candidate_text(i, limit, cut))
            if len(own) <= self._room or last:
                break
        counts.update(cut)
        return own
