"""Text to tokens: the tokenizer's chat template cut into parts that are tokenized separately.

A conversation of one question and one answer is `head + question + middle + answer + tail`. The
prefix that candidates share is `head` and the beginning of the question; a suffix is the rest of
the question and `middle`. Cutting the text and not the tokens makes training and scoring agree to
the token whatever the tokenizer merges.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.prompts.templates import IMAGE, YES_NO
from mmsrec_jax.runtime.errors import UserError

if TYPE_CHECKING:  # it imports jax
    from mmsrec_jax.models.mllm import MLLM

_QUESTION, _ANSWER = "\ue002", "\ue003"
_PRIVATE = re.compile(f"[{IMAGE}{_QUESTION}{_ANSWER}]")


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """A part of a prompt in tokens.

    Attributes:
      tokens: int32[n], every image as one token per slot.
      positions: int32[3, n], M-RoPE from 0.
      next_position: where text after this piece goes on.
      images: one dict of `ImageProcessor.patchify` per image, in slot order.
    """

    tokens: np.ndarray
    positions: np.ndarray
    next_position: int
    images: tuple[dict, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)


class Chat:
    """Conversations of one model family in tokens. Picklable and free of transformers and jax.

    Args:
      tokenizer: a fast transformers tokenizer with a chat template.
      image_token_id, vision_start_token_id, vision_end_token_id: how the model writes an image;
        None where the family has no such token. InternVL's marks around an image are in no
        config.json: the tokenizer names them (`start_image_token`, `end_image_token`).
      processor: says how many slots an image has and where they stand.

    Raises:
      UserError: the chat template is missing or loses the question or the answer, or the tokenizer
        cannot tell yes from no.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        image_token_id: int | None = None,
        vision_start_token_id: int | None = None,
        vision_end_token_id: int | None = None,
        processor: ImageProcessor | None = None,
    ):
        if not tokenizer.chat_template:
            raise UserError("the tokenizer has no chat template; add chat_template.json to it")
        text = tokenizer.apply_chat_template(
            [
                {"role": "user", "content": _QUESTION},
                {"role": "assistant", "content": _ANSWER},
            ],
            tokenize=False,
        )
        if text.count(_QUESTION) != 1 or text.count(_ANSWER) != 1:
            raise UserError("the chat template must show the question and the answer once each")
        self.head, rest = text.split(_QUESTION)
        self.middle, self.tail = rest.split(_ANSWER)
        self._backend = tokenizer.backend_tokenizer
        self._image_token_id = image_token_id
        self._processor = processor
        if vision_start_token_id is None and vision_end_token_id is None:
            vision_start_token_id = getattr(tokenizer, "start_image_token_id", None)
            vision_end_token_id = getattr(tokenizer, "end_image_token_id", None)
        names = [
            tokenizer.convert_ids_to_tokens(i)
            for i in (vision_start_token_id, image_token_id, vision_end_token_id)
            if i is not None
        ]
        self._image_text = "".join(names)
        special = {str(token.content) for token in tokenizer.added_tokens_decoder.values()}
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len)[::-1])) or "$^")
        self.yes_no_ids = yes_no_ids(tokenizer)
        tail = self.ids(self.tail)
        if len(tail) == 0:
            raise UserError("the chat template must close the answer with a token")
        self.stop_id = int(tail[0])

    @classmethod
    def of(cls, model: "MLLM", tokenizer: Any) -> "Chat":
        """The conversations of a model that `hf.loading.load` gave, and of its tokenizer."""
        config = model.config
        return cls(
            tokenizer,
            image_token_id=config.image_token_id,
            vision_start_token_id=config.vision_start_token_id,
            vision_end_token_id=config.vision_end_token_id,
            processor=model.processor,
        )

    def clean(self, text: str) -> str:
        """Text of an item without special tokens (which it could forge), on one line."""
        text = _PRIVATE.sub("", text)
        while (cleaned := self._special.sub("", text)) != text:
            text = cleaned
        return " ".join(text.split())

    def cut(self, text: str, tokens: int) -> tuple[str, bool]:
        """The beginning of `text` that is at most `tokens` long, and whether any was cut off."""
        if not text:
            return text, False
        encoding = self._backend.encode(" " + text, add_special_tokens=False)
        if len(encoding.ids) <= tokens:
            return text, False
        end = encoding.offsets[tokens][0] if tokens else 0
        return text[: max(0, end - 1)].rstrip(), True

    def ids(self, text: str) -> np.ndarray:
        """int32[n] of text without images."""
        return np.array(self._backend.encode(text, add_special_tokens=False).ids, np.int32)

    def encode(self, text: str, images: Sequence[dict] = ()) -> Piece:
        """Text with one `IMAGE` mark per image as a piece."""
        if text.count(IMAGE) != len(images):
            raise ValueError(f"{text.count(IMAGE)} image marks for {len(images)} images")
        if not images:
            tokens = self.ids(text)
            positions = np.broadcast_to(np.arange(len(tokens), dtype=np.int32), (3, len(tokens)))
            return Piece(tokens, positions, len(tokens))
        if self._processor is None:
            raise ValueError("images for a chat without an image processor")
        tokens = self.ids(text.replace(IMAGE, self._image_text))
        slots = np.ones(len(tokens), np.int64)
        slots[tokens == self._image_token_id] = [
            self._processor.num_slots(image["grid"]) for image in images
        ]
        tokens = np.repeat(tokens, slots)
        grids = [image["grid"] for image in images]
        positions = self._processor.positions(tokens, grids, self._image_token_id)
        return Piece(tokens, positions, int(positions.max()) + 1, tuple(images))


def yes_no_ids(tokenizer: Any) -> tuple[int, int]:
    """Ids (yes, no) of the answer's first token at the start of an answer.

    The paper's score is p(yes) / (p(yes) + p(no)) at this token. Raises UserError when both words
    begin with the same token.
    """
    yes, no = (tokenizer.encode(word, add_special_tokens=False)[0] for word in YES_NO)
    if yes == no:
        raise UserError(f"the tokenizer begins {YES_NO[0]!r} and {YES_NO[1]!r} alike")
    return yes, no
