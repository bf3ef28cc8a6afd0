"""The same prompts, answers and candidates for both sides, in numpy: random tokens and pixels.

Pieces are those of `prompts.chat`, so that this package collates them as it does any other.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.accelerator.peers import weights
from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.prompts.chat import Piece

YES_NO = (11, 12)  # ids that stand for yes and no
_FIRST_WORD, _LAST_WORD = 20, 1000  # ids of text; both vocabularies have them


class Writer:
    """Makes pieces, the same ones in every process that asks for the same."""

    def __init__(self, config: weights.Config, seed: int):
        self._config, self.processor = config, weights.processor(config)
        self._rng = np.random.default_rng(seed)

    def words(self, count: int) -> np.ndarray:
        """int32[count]"""
        return self._rng.integers(_FIRST_WORD, _LAST_WORD, count, dtype=np.int32)

    def piece(self, length: int, size: tuple[int, int] | None = None) -> Piece:
        """`length` tokens; with a size in pixels an image stands in the middle of them."""
        if size is None:
            return self._piece(self.words(length), ())
        config = self._config
        image = self.processor.patchify(self._rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        slots = self.processor.num_slots(image["grid"])
        words = self.words(length - slots - 2)
        half = len(words) // 2
        shown = [config["vision_start_token_id"]] + [config["image_token_id"]] * slots
        shown.append(config["vision_end_token_id"])
        tokens = np.concatenate([words[:half], np.array(shown, np.int32), words[half:]])
        return self._piece(tokens, (image,))

    def _piece(self, tokens: np.ndarray, images: tuple[dict, ...]) -> Piece:
        grids = [image["grid"] for image in images]
        positions = self.processor.positions(tokens, grids, self._config["image_token_id"])
        return Piece(tokens, positions, int(positions.max()) + 1, images)

    @property
    def image_tokens(self) -> tuple[int, ...]:
        """Ids that stand for an image or mark one: never written by a model."""
        return tuple(value for key, value in self._config.items() if key.endswith("token_id"))


def joined(first: Piece, second: Piece) -> Piece:
    """`second` after `first`."""
    return Piece(
        np.concatenate([first.tokens, second.tokens]),
        np.concatenate([first.positions, second.positions + first.next_position], axis=1),
        first.next_position + second.next_position,
        first.images + second.images,
    )


def with_text(piece: Piece, tokens: np.ndarray) -> Piece:
    """Text int32[n] after a piece."""
    after = np.broadcast_to(np.arange(len(tokens), dtype=np.int32), (3, len(tokens)))
    return joined(piece, Piece(tokens, after, len(tokens)))


@dataclasses.dataclass(frozen=True)
class Padded:
    """Pieces as transformers reads them: N rows as long as the longest.

    tokens: int64[N, L]; positions: int64[3, N, L]; mask: int64[N, L], 1 where a token is; lengths:
    int64[N]; pixels: float32[patches, values] of all images, normalized and with two frames; grids:
    int64[images, 3]. Without images pixels and grids are None.
    """

    tokens: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    lengths: np.ndarray
    pixels: np.ndarray | None
    grids: np.ndarray | None


def padded(pieces: Sequence[Piece], processor: ImageProcessor, *, left: bool = False) -> Padded:
    lengths = np.array([len(piece) for piece in pieces])
    shape = len(pieces), int(lengths.max())
    tokens, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    positions = np.zeros((3, *shape), np.int64)
    for row, (piece, length) in enumerate(zip(pieces, lengths, strict=True)):
        span = slice(shape[1] - length, None) if left else slice(0, length)
        tokens[row, span], mask[row, span] = piece.tokens, 1
        positions[:, row, span] = piece.positions
    images = [image for piece in pieces for image in piece.images]
    if not images:
        return Padded(tokens, positions, mask, lengths, None, None)
    grids = np.array([(1, *image["grid"]) for image in images])
    pixels = np.concatenate([_normalized(image, processor) for image in images])
    return Padded(tokens, positions, mask, lengths, pixels, grids)


def _normalized(image: dict[str, Any], processor: ImageProcessor) -> np.ndarray:
    """float32[patches, channels * frames * pixels] of an image, whose two frames are the same."""
    mean, std = (np.array(x, np.float32)[:, None] for x in (processor.mean, processor.std))
    patches = image["patches"].astype(np.float32)
    patches = (patches.reshape(len(patches), len(mean), -1) * processor.rescale - mean) / std
    return np.repeat(patches[:, :, None], 2, axis=2).reshape(len(patches), -1)
