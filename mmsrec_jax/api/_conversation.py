"""Conversations and images to one batch of few shapes: what `generate` and `embed` share."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from mmsrec_jax.data.sequences import power_of_two
from mmsrec_jax.hf import tokenizer as tokenizers
from mmsrec_jax.inputs.batch import Room, collate
from mmsrec_jax.inputs.example import Example
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.prompts import Chat, Piece
from mmsrec_jax.prompts.templates import IMAGE
from mmsrec_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHORTEST = 16  # tokens; a batch is padded to a power of two from here on


def open_tokenizer(tokenizer: "PreTrainedTokenizerBase | str | Path") -> "PreTrainedTokenizerBase":
    """The tokenizer itself, or that of a Hugging Face directory."""
    return tokenizers.load(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer


def encode(model: MLLM, chat: Chat, text: str, images: Sequence[np.ndarray], row: int) -> Piece:
    """A text with one `IMAGE` mark an image, in tokens."""
    if images and model.vision is None:
        raise UserError(
            f"row {row}: images are given, but the model is text-only: it has no vision tower"
        )
    if text.count(IMAGE) != len(images):
        raise UserError(
            f"row {row}: {len(images)} images for {text.count(IMAGE)} image parts; give as many"
        )
    try:
        shown = [model.processor.patchify(np.asarray(i)) for i in images]
        return chat.encode_written(text, shown)
    except UserError as error:
        raise UserError(f"row {row}: {error}") from None


def make_batch(examples: Sequence[Example]) -> Batch:
    """A row for each example. Rows, tokens and patches are padded to powers of two, so that few
    shapes are compiled.

    The rows that fill up repeat the last one: they end when it ends.
    """
    rows = [[example] for example in examples]
    rows += [rows[-1]] * (power_of_two(len(rows)) - len(rows))
    length = max(_SHORTEST, power_of_two(max(map(len, examples))))
    patches = max(example.num_patches for example in examples)
    width = next((image["patches"].shape[1] for e in examples for image in e.images), 0)
    room = Room(
        rows=len(rows),
        length=length,
        targets=length,
        patches=power_of_two(patches) if patches else 0,
        patch_width=width,
    )
    return collate(rows, room)


def chunks(count: int, size: int) -> Iterator[slice]:
    """0:size, size:2*size, ... up to `count`."""
    if size < 1:
        raise UserError(f"batch_size={size}: must be at least 1")
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def on_mesh_of(model: MLLM) -> contextlib.AbstractContextManager:
    """The mesh over which the parameters lie as the mesh in use, if they lie over one."""
    sharding = jax.tree.leaves(nnx.state(model, nnx.Param))[0].sharding
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        return jax.set_mesh(sharding.mesh)
    return contextlib.nullcontext()
