"""Prompts by which an item is understood: questions about its picture, then one summary.

The order is the paper's (MLLM-SRec: visual question answering gives a visual summary, which the
item summary unit fuses with the text); the questions, the sentences and the other modes are *ours*.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from mmsrec_jax.data.records import Catalog
from mmsrec_jax.inputs import example as examples
from mmsrec_jax.inputs.example import Example
from mmsrec_jax.inputs.item_prompts import PerItem
from mmsrec_jax.inputs.item_renderer import ItemRenderer, PromptConfig
from mmsrec_jax.inputs.truncation import limits
from mmsrec_jax.prompts import tasks
from mmsrec_jax.runtime.errors import UserError

TEXT, IMAGE, BOTH, BOTH_VQA = MODES = ("text", "image", "both", "both_vqa")

Answers = Sequence[tuple[str, str]]
"""(question about the picture, what the model answered) each."""

_NONE = np.zeros(0, np.int32)


class VisualQuestions:
    """Questions about the pictures of items; a row is an item and a question.

    The prompt shows the picture and not the text, so that the answer says what is seen. A picture
    that the image processor refuses (see `ItemRenderer.image`) is replaced by the text.

    Args:
      questions: all of them are asked of every item.
      items: int[n], those that have a picture.
      length: room for a prompt, in tokens.

    Attributes:
      keys: (item, question) of each row, the questions of an item one after the other.
    """

    def __init__(
        self,
        catalog: Catalog,
        prompt_config: PromptConfig,
        *,
        questions: Sequence[str],
        items: np.ndarray,
        length: int,
    ):
        self.renderer, self.length = ItemRenderer(catalog, prompt_config), length
        self.keys = [(int(item), question) for item in items for question in questions]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def patch_width(self) -> int:
        """Values of a vision patch."""
        return self.renderer.patch_width

    def example(self, row: int, draw: int) -> Example:
        del draw
        item, question = self.keys[row]
        made = visual_example(self.renderer, item, question, _NONE, length=self.length)
        return _checked(made, self.length, f"the question {question!r}")


class FusionSource(PerItem):
    """The prompt of every item whose answer is its one multimodal summary.

    mode: what it shows. "text", "image" and "both" show just that. "both_vqa" shows the answers to
    the questions about the picture, in its place, and the text. An item without a picture shows its
    text in every mode.

    answers: item -> its visual answers, none where it has no picture; read in mode "both_vqa".
    """

    def __init__(
        self,
        catalog: Catalog,
        prompt_config: PromptConfig,
        *,
        length: int,
        mode: str,
        answers: Callable[[int], Answers],
    ):
        if mode not in (IMAGE, BOTH):  # no room for patches is needed then
            prompt_config = dataclasses.replace(prompt_config, processor=None)
        super().__init__(catalog, prompt_config, length=length)
        self._mode, self._answers = mode, answers

    def example(self, row: int, draw: int) -> Example:
        del draw
        answers = self._answers(row) if self._mode == BOTH_VQA else ()
        made = fusion_example(self.renderer, row, self._mode, answers, _NONE, length=self.length)
        return _checked(made, self.length, "the question for a summary, with what is always shown,")


def _checked(example: Example, length: int, what: str) -> Example:
    """`example`, a prompt. Raises UserError when it is longer than `length`, without any text."""
    if len(example.tokens) > length:
        raise UserError(
            f"config.understanding.prompt_length={length}: {what} has {len(example.tokens)} "
            "tokens; raise it"
        )
    return example


def visual_example(
    renderer: ItemRenderer, item: int, question: str, answer: np.ndarray, *, length: int
) -> Example:
    """One question about a picture, and its answer int32[m] (may be empty)."""

    def ask(text: str, has_image: bool) -> str:
        return tasks.visual(renderer.prompt_config.templates, question, text, has_image)

    return _fitting(renderer, item, ask, answer, length=length, image=True, text=False)


def fusion_example(
    renderer: ItemRenderer,
    item: int,
    mode: str,
    answers: Answers,
    answer: np.ndarray,
    *,
    length: int,
) -> Example:
    """What `mode` shows of an item, and its summary int32[m] (may be empty)."""

    def ask(text: str, has_image: bool) -> str:
        return tasks.fuse(renderer.prompt_config.templates, text, has_image, answers)

    image, text = mode in (IMAGE, BOTH), mode != IMAGE
    return _fitting(renderer, item, ask, answer, length=length, image=image, text=text)


def _fitting(
    renderer: ItemRenderer,
    item: int,
    ask: Callable[[str, bool], str],
    answer: np.ndarray,
    *,
    length: int,
    image: bool,
    text: bool,
) -> Example:
    """With the longest text that fits, without any if none does. An item whose image shall stand
    alone and is not there shows its text."""
    chat = renderer.prompt_config.chat
    for limit, last in limits(renderer.prompt_config.text_tokens):
        counts: Counter[str] = Counter()
        shown = renderer.image(item, counts) if image else None
        words = renderer.text(item, limit, counts) if text or shown is None else ""
        prompt = chat.encode(
            chat.head + ask(words, shown is not None) + chat.middle,
            () if shown is None else (shown,),
        )
        if len(prompt) + len(answer) <= length or last:
            break
    return examples.sequence(prompt, answer, index=item, counts=counts)
