"""What rewards read: typed arrays, and how the host makes them from summaries."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

import flax.struct
import jax
import numpy as np

from mmsrec_jax.inputs.item_renderer import ItemRenderer, PromptConfig
from mmsrec_jax.prompts import Summary, tasks

A = TypeVar("A", np.ndarray, jax.Array)  # on the host, on the devices


@flax.struct.dataclass
class PaddedTexts(Generic[A]):
    """Tokens int32[..., T] of texts, padded with 0 to one length, and their lengths int32[...]."""

    tokens: A
    lengths: A


@flax.struct.dataclass
class RewardInputs(Generic[A]):
    """Of B items with G summaries each.

    Attributes:
      keywords: [B, G, Tw], keywords of each summary, as one text.
      text: [B, Tt], texts of the items; length 0 without text.
      has_image: bool[B].
      own: what each reward prepared for itself: name of the reward -> name -> [B, ...].
    """

    keywords: PaddedTexts[A]
    text: PaddedTexts[A]
    has_image: A
    own: dict[str, dict[str, A]]


@dataclasses.dataclass(frozen=True)
class ItemSummaries:
    """An item and its G summaries, on the host.

    Attributes:
      summaries: G of them.
      keywords: of each summary, as one text, the way they stand in lists of items; at most
        `word_tokens` tokens of `read_items`.
      text: of the item, "" without text.
      image: of the item, patches (`ItemRenderer.image`); None without an image.
    """

    summaries: Sequence[Summary]
    keywords: Sequence[str]
    text: str
    image: dict[str, Any] | None


def read_items(
    renderer: ItemRenderer,
    index: np.ndarray,
    summaries: Sequence[Sequence[Summary]],
    *,
    word_tokens: int,
) -> list[ItemSummaries]:
    """B items with their summaries.

    index: int[B], items; summaries: G for each; word_tokens: room Tw for a summary's keywords, a
    longer one loses its tail.
    """
    config = renderer.prompt_config
    uncounted: Counter[str] = Counter()

    def keywords(summary: Summary) -> str:
        words = config.chat.clean(", ".join(summary.keywords))
        return config.chat.cut(tasks.item_words(config.templates, words), word_tokens)[0]

    return [
        ItemSummaries(
            summaries=group,
            keywords=[keywords(summary) for summary in group],
            text=renderer.text(int(i), config.text_tokens, uncounted),
            image=renderer.image(int(i), uncounted),
        )
        for i, group in zip(index, summaries, strict=True)
    ]


def shared_inputs(
    config: PromptConfig,
    items: Sequence[ItemSummaries],
    own: dict[str, dict[str, np.ndarray]],
    *,
    word_tokens: int,
) -> RewardInputs[np.ndarray]:
    """The arrays that several rewards read, with what each of them prepared for itself."""

    def ids(words: str) -> np.ndarray:
        return config.chat.ids(tasks.answer(config.templates, words)) if words else _NOTHING

    return RewardInputs(
        keywords=stacked(
            pad((ids(words) for words in item.keywords), word_tokens) for item in items
        ),
        # An opening space may cost a token.
        text=pad((ids(item.text) for item in items), config.text_tokens + 1),
        has_image=np.array([item.image is not None for item in items]),
        own=own,
    )


def pad(texts: Iterable[np.ndarray], length: int) -> PaddedTexts[np.ndarray]:
    """N texts, each int32[t], as tokens int32[N, length]; a longer one loses its tail."""
    texts = [text[:length] for text in texts]
    tokens = np.zeros((len(texts), length), np.int32)
    for i, text in enumerate(texts):
        tokens[i, : len(text)] = text
    return PaddedTexts(tokens, np.array([len(text) for text in texts], np.int32))


def stacked(texts: Iterable[PaddedTexts[np.ndarray]]) -> PaddedTexts[np.ndarray]:
    """One more axis in front."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *texts)


_NOTHING = np.zeros(0, np.int32)
