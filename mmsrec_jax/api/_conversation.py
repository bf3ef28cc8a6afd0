"""Conversations and images to one batch of few shapes: what `generate` and `embed` share."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from mmsrec_jax.data.sequences import power_of_two
from mmsrec_jax.hf import api
from mmsrec_jax.hf import tokenizer as tokenizers
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.prompts import Chat
from mmsrec_jax.prompts.templates import IMAGE
from mmsrec_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHORTEST = 16  # tokens; a batch is padded to a power of two from here on


def open_tokenizer(tokenizer: "PreTrainedTokenizerBase | str | Path") -> "PreTrainedTokenizerBase":
    """The tokenizer itself, or that of a Hugging Face directory."""
    return tokenizers.load(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer


def encode(
    model: MLLM, chat: Chat, text: str, images: Sequence[np.ndarray], row: int
) -> np.ndarray:
    """int32[n] tokens of a text with one `IMAGE` mark an image, every image as its slots."""
    if images and model.vision is None:
        raise UserError("images are given, but the model has no vision tower")
    if text.count(IMAGE) != len(images):
        raise UserError(
            f"row {row}: {len(images)} images for {text.count(IMAGE)} image parts; give as many"
        )
    for number, image in enumerate(images):
        if getattr(image, "ndim", 0) != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(
                f"row {row}, image {number}: must be a uint8 array [height, width, 3], not "
                f"{getattr(image, 'dtype', type(image).__name__)} "
                f"{list(getattr(image, 'shape', ()))}; convert it to 8-bit RGB"
            )
    grids = [{"grid": model.processor.grid(*image.shape[:2])} for image in images]
    return chat.encode(text, grids).tokens


def make_batch(
    model: MLLM, rows: Sequence[np.ndarray], images: Sequence[Sequence[np.ndarray]]
) -> dict[str, np.ndarray]:
    """A batch of right-padded rows; rows, tokens and patches are padded to powers of two, so that
    few shapes are compiled.

    The rows that fill up repeat the last one: they end when it ends.
    """
    filled = power_of_two(len(rows))
    rows = [*rows, *[rows[-1]] * (filled - len(rows))]
    images = [*images, *[images[-1]] * (filled - len(images))]
    length = max(_SHORTEST, power_of_two(max(map(len, rows))))
    tokens = np.zeros((filled, length), np.int32)
    mask = np.zeros((filled, length), np.int32)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
        mask[index, : len(row)] = 1
    batch = api.make_batch(model, tokens, mask, images)
    for name, value in batch.items():
        if name.startswith("patch"):
            room = power_of_two(value.shape[1]) - value.shape[1]
            batch[name] = np.pad(value, [(0, 0), (0, room), *[(0, 0)] * (value.ndim - 2)])
    return batch


def chunks(count: int, size: int) -> Iterator[slice]:
    """0:size, size:2*size, ... up to `count`."""
    if size < 1:
        raise UserError(f"batch_size={size}: must be at least 1")
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def on_mesh_of(model: MLLM) -> contextlib.AbstractContextManager:
    """The mesh over which the parameters lie as the mesh in use, if they lie over one."""
    sharding = jax.tree.leaves(nnx.state(model, nnx.Param))[0].sharding
    if isinstance(sharding, NamedSharding):
        return jax.set_mesh(sharding.mesh)
    return contextlib.nullcontext()
