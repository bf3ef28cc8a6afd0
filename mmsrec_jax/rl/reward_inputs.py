"""What the frozen reference must read to judge summaries: keywords back to tokens, on the host."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mmsrec_jax.inputs.item_renderer import ItemRenderer
from mmsrec_jax.prompts import Summary, format_summary, tasks
from mmsrec_jax.rl import rewards


class RewardInputs:
    """Builds the same static shapes for every batch of B items with G summaries each.

    Args:
      items: texts, images and sentences of the catalog.
      word_tokens: room Tw for a summary's keywords; a longer one loses its tail.
      image_tokens: room Ti for its image line; what is beyond is not scored.
      prompt_length: room L for a prompt with an image and no text.
    """

    def __init__(
        self, items: ItemRenderer, *, word_tokens: int, image_tokens: int, prompt_length: int
    ):
        self._items, self._chat = items, items.prompt_config.chat
        self._templates = items.prompt_config.templates
        self._word_tokens, self._image_tokens = word_tokens, image_tokens
        self._prompt_length = prompt_length
        self._text_tokens = items.prompt_config.text_tokens + 1  # an opening space may cost a token
        # Tokens may merge differently at the keywords' edges: a little more than the sum.
        self._ask_tokens = len(self._ask("")) + word_tokens + 4

    def arrays(
        self, index: np.ndarray, summaries: Sequence[Sequence[Summary]]
    ) -> dict[str, np.ndarray]:
        """Arrays for `reference.scores`, first axis B.

        index: int[B], items; summaries: G for each.

        Returns words int32[B, G, Tw]; ask int32[B, G + 1, P], prompts for the item's text (the last
        one without keywords); text int32[B, Tt]; image_line int32[B, G, Ti]; each with `*_lengths`;
        keywords int32[B, G]; form float32[B, G]; image_tokens, image_segments int32[B, L] and
        image_positions int32[B, 3, L], prompts that show the image alone; has_image bool[B].
        """
        made = [self._item(int(i), row) for i, row in zip(index, summaries, strict=True)]
        return {name: np.stack([row[name] for row in made]) for name in made[0]}

    def _item(self, i: int, summaries: Sequence[Summary]) -> dict[str, np.ndarray]:
        chat, found = self._chat, Counter()
        image = self._items.image(i, found)
        text = self._items.text(i, self._items.prompt_config.text_tokens, found)
        words = [self._words(summary) for summary in summaries]
        out = {
            **_padded("words", [self._ids(w) for w in words], self._word_tokens),
            **_padded("ask", [self._fitting(w) for w in (*words, "")], self._ask_tokens),
            **_padded("image_line", [self._image_line(s) for s in summaries], self._image_tokens),
            "keywords": np.array([len(s.image) + len(s.text) for s in summaries], np.int32),
            "form": np.array(
                [
                    rewards.form(s, has_image=image is not None, has_text=bool(text))
                    for s in summaries
                ],
                np.float32,
            ),
            "has_image": np.array(image is not None),
        }
        described = _padded("text", [self._ids(text)], self._text_tokens)
        out |= {name: value[0] for name, value in described.items()}
        question = tasks.summarize(self._templates, "", image is not None)
        piece = chat.encode(chat.head + question + chat.middle, () if image is None else (image,))
        room = self._prompt_length - len(piece)
        return out | {
            "image_tokens": np.pad(piece.tokens, (0, room)),
            "image_segments": np.pad(np.ones(len(piece), np.int32), (0, room)),
            "image_positions": np.pad(piece.positions, ((0, 0), (0, room))),
        }

    def _words(self, summary: Summary) -> str:
        """Keywords as they stand in lists of items, in at most Tw tokens."""
        words = tasks.item_words(self._templates, self._chat.clean(", ".join(summary.keywords)))
        return self._chat.cut(words, self._word_tokens)[0]

    def _ids(self, words: str) -> np.ndarray:
        return self._chat.ids(tasks.answer(self._templates, words)) if words else _NOTHING

    def _ask(self, words: str) -> np.ndarray:
        chat = self._chat
        return chat.ids(chat.head + tasks.align_words(self._templates, words) + chat.middle)

    def _fitting(self, words: str) -> np.ndarray:
        limit = self._word_tokens
        while len(ids := self._ask(words)) > self._ask_tokens:
            limit //= 2
            words = self._chat.cut(words, limit)[0]
        return ids

    def _image_line(self, summary: Summary) -> np.ndarray:
        line = format_summary([self._chat.clean(w) for w in summary.image], [])
        return self._chat.ids(line.partition("\n")[0])


_NOTHING = np.zeros(0, np.int32)


def _padded(name: str, rows: Sequence[np.ndarray], length: int) -> dict[str, np.ndarray]:
    rows = [row[:length] for row in rows]
    out = np.zeros((len(rows), length), np.int32)
    for r, row in enumerate(rows):
        out[r, : len(row)] = row
    return {name: out, f"{name}_lengths": np.array([len(row) for row in rows], np.int32)}
