"""Text to tokens: the tokenizer's chat template cut into parts that are tokenized separately.

A conversation of one question and one answer is `head + question + middle + answer + tail`. The
prefix that candidates share is `head` and the beginning of the question; a suffix is the rest of
the question and `middle`. Cutting the text and not the tokens makes training and scoring agree to
the token whatever the tokenizer merges.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.prompts.chat_template import ANSWER, QUESTION, ChatTemplate, Conversation
from mmsrec_jax.prompts.cleaning import Cleaner, bare
from mmsrec_jax.prompts.templates import IMAGE, YES_NO
from mmsrec_jax.runtime.errors import UserError

if TYPE_CHECKING:  # it imports jax
    from mmsrec_jax.models.mllm import MLLM


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


_PASSES = 4
_SPACE = "\u2581"  # how SentencePiece writes a space


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
        self._template = ChatTemplate(tokenizer)
        self.head, self.middle = self._template.head, self._template.middle
        self.tail = self._template.tail
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
        if None in names:
            raise UserError(
                f"the image token {image_token_id} of config.json, or a mark around it, is no "
                "token of the tokenizer; fetch both files again"
            )
        self._image_text = "".join(names)
        added = tokenizer.added_tokens_decoder.items()
        special = {i: str(token.content) for i, token in added if str(token.content).strip()}
        # The token of unknown characters stands for what a text may well hold.
        ids = [i for i in special if i != tokenizer.unk_token_id]
        self._is_special = np.zeros(1 + max(*tokenizer.get_vocab().values(), *special), bool)
        self._is_special[ids] = True
        marks = IMAGE + QUESTION + ANSWER
        self._cleaner = Cleaner(special.values(), self._template.turns, marks)
        self._opening = ""
        if image_token_id is not None and _begins_with_bos(tokenizer):
            # The families' own processors let the tokenizer add it.
            self._opening = tokenizer.bos_token
            if not self.head.startswith(self._opening):
                self.head = self._opening + self.head
        self.yes_no_ids = yes_no_ids(tokenizer)
        if tokenizer.convert_ids_to_tokens(self.yes_no_ids[0]).startswith(_SPACE):
            self.middle = self.middle.rstrip(" ")  # the answer brings its space along
        self.stop_id = self._stop(tokenizer.eos_token_id)
        parts = (self.head, self.middle, self._image_text)
        self._specials = {part: self._count_special(self.ids(part)) for part in parts}
        self._specials[""] = 0

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

    def write(self, conversations: Sequence[Conversation]) -> list[str]:
        """Each conversation in the words of the chat template; raises UserError where it fails."""
        written = self._template.render(conversations)
        return [
            text if text.startswith(self._opening) else self._opening + text for text in written
        ]

    def clean(self, text: str) -> str:
        """Text of an item without what it could forge: special tokens, and words by which the chat
        template tells whose turn it is. On one line."""
        text = self._cleaner.clean(text)
        if text.isascii() and "<" not in text and "[" not in text:
            return text
        # The tokenizer may know other spellings of a special token.
        for _ in range(_PASSES):
            encoding = self._backend.encode(text, add_special_tokens=False)
            places = zip(encoding.ids, encoding.offsets, strict=True)
            forged = [place for i, place in places if self._is_special[i]]
            if not forged:
                return text
            for start, end in reversed(forged):
                text = f"{text[:start]} {text[max(end, start + 1) :]}"
            text = self._cleaner.clean(text)
        return bare(text)

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
        """int32[n] of text without images; special tokens in it are meant."""
        return np.array(self._backend.encode(text, add_special_tokens=False).ids, np.int32)

    def encode(self, text: str, images: Sequence[dict] = ()) -> Piece:
        """Text with one `IMAGE` mark per image as a piece.

        `head` at its beginning and `middle` at its end stay. What is between them cannot forge
        them: special tokens and role words are taken out. Raises UserError where a special token
        comes out all the same.
        """
        at_start = self.head if text.startswith(self.head) else ""
        at_end = self.middle if text.endswith(self.middle) else ""
        if len(text) < len(at_start) + len(at_end):
            at_end = ""
        body = text[len(at_start) : len(text) - len(at_end)]
        tokens = self._tokens(at_start + self._cleaner.without_forged(body) + at_end, images)
        expected = self._specials[at_start] + self._specials[at_end]
        expected += len(images) * self._specials[self._image_text]
        if (found := self._count_special(tokens)) != expected:
            raise UserError(
                f"a text becomes a special token of the tokenizer ({found} instead of {expected} "
                f"in {text[:80]!r}); take it out of the data"
            )
        return self._piece(tokens, images)

    def encode_written(self, text: str, images: Sequence[dict] = ()) -> Piece:
        """The same of a text whose special tokens are meant, as `write` gives it."""
        return self._piece(self._tokens(text, images), images)

    def _count_special(self, tokens: np.ndarray) -> int:
        return int(self._is_special[tokens].sum())

    def _tokens(self, text: str, images: Sequence[dict]) -> np.ndarray:
        """int32[n] with one image token for each image."""
        if text.count(IMAGE) != len(images):
            raise ValueError(f"{text.count(IMAGE)} image marks for {len(images)} images")
        if images and self._processor is None:
            raise ValueError("images for a chat without an image processor")
        tokens = self.ids(text.replace(IMAGE, self._image_text))
        found = 0 if self._image_token_id is None else int((tokens == self._image_token_id).sum())
        if found != len(images):
            raise UserError(
                f"a text holds the image token ({found} of them for {len(images)} images); take it "
                "out"
            )
        return tokens

    def _piece(self, tokens: np.ndarray, images: Sequence[dict]) -> Piece:
        if not images:
            positions = np.broadcast_to(np.arange(len(tokens), dtype=np.int32), (3, len(tokens)))
            return Piece(tokens, positions, len(tokens))
        assert self._processor is not None, "asked for with the tokens"
        slots = np.ones(len(tokens), np.int64)
        slots[tokens == self._image_token_id] = [
            self._processor.num_slots(image["grid"]) for image in images
        ]
        tokens = np.repeat(tokens, slots)
        grids = [image["grid"] for image in images]
        positions = self._processor.positions(tokens, grids, self._image_token_id)
        return Piece(tokens, positions, int(positions.max()) + 1, tuple(images))

    def _stop(self, eos: int | None) -> int:
        """The token that ends an answer: the first special one behind it, else the usual end."""
        tail = self.ids(self.tail)
        special = tail[self._is_special[tail]]
        if len(special):
            return int(special[0])
        if eos is not None:
            return eos
        if len(tail) == 0:
            raise UserError("the chat template must close the answer with a token")
        return int(tail[0])


def _begins_with_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer opens a text with its beginning-of-text token by itself."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer.encode("a")[:1] == [bos]


def yes_no_ids(tokenizer: Any) -> tuple[int, int]:
    """Ids (yes, no) of the answer's first token at the start of an answer.

    The paper's score is p(yes) / (p(yes) + p(no)) at this token. Raises UserError when both words
    begin with the same token.
    """
    yes, no = (tokenizer.encode(word, add_special_tokens=False)[:1] for word in YES_NO)
    if not yes or yes == no:
        raise UserError(f"the tokenizer begins {YES_NO[0]!r} and {YES_NO[1]!r} alike")
    return yes[0], no[0]
