"""Vectors of texts and images from a model."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from flax import nnx

from mmsrec_jax.api import _conversation
from mmsrec_jax.inference.embed import mean_hidden
from mmsrec_jax.inputs import example
from mmsrec_jax.models.batch import Batch
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.prompts import Chat
from mmsrec_jax.prompts.templates import IMAGE
from mmsrec_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def embed(
    model: MLLM,
    tokenizer: "PreTrainedTokenizerBase | str | Path",
    texts: Sequence[str] | None = None,
    images: Sequence[np.ndarray | None] | None = None,
    *,
    batch_size: int = 16,
) -> np.ndarray:
    """Pooled final hidden states: float32[n, hidden], a row for each text, image or pair of them.

    The mean over the tokens of the image and of the text, the opening of the conversation left out
    (*ours*): what the step `features` of a run makes of an item. A row without any token is 0.

    Args:
      model: from `load`; adapters are on.
      tokenizer: a transformers tokenizer, or the model's directory.
      texts: n texts, None where there are only images.
      images: n arrays uint8 [height, width, 3], None for a row without one; or no images at all.
      batch_size: rows at a time; they are padded to powers of two, so that calls share programs.

    Raises:
      UserError: neither texts nor images, not as many of both, or an image that is no uint8 RGB.

    >>> model = mmsrec_jax.load("models/tiny")
    >>> mmsrec_jax.embed(model, "models/tiny", ["linen bag", "oak lamp", "glass bowl"]).shape
    (3, 32)
    >>> photo = np.zeros((56, 56, 3), np.uint8)
    >>> vectors = mmsrec_jax.embed(model, "models/tiny", images=[photo, photo])
    >>> bool(np.allclose(vectors[0], vectors[1]))
    True
    """
    if texts is None and images is None:
        raise UserError("give texts, images, or as many of both")
    texts = [""] * len(images or ()) if texts is None else texts
    count = len(texts)
    images = [None] * count if images is None else images
    if isinstance(texts, str) or len(images) != count:
        raise UserError(f"{count} texts and {len(images)} images: give lists of one length")
    chat = Chat.of(model, _conversation.open_tokenizer(tokenizer))
    listed = [[] if image is None else [image] for image in images]
    rows = []
    for row, (text, of_row) in enumerate(zip(texts, listed, strict=True)):
        opening = _conversation.encode(model, chat, chat.head + IMAGE * len(of_row), of_row, row)
        rows.append(example.sequence(opening, chat.ids(chat.clean(text))))
    found = np.zeros((count, model.config.text.hidden), np.float32)
    graphdef, state = nnx.split(model)
    with _conversation.on_mesh_of(model):
        for part in _conversation.chunks(count, batch_size):
            batch = _conversation.make_batch(rows[part])
            found[part] = _embed(graphdef, state, batch)[: part.stop - part.start]
    return found


@partial(jax.jit, static_argnums=0)
def _embed(graphdef: nnx.GraphDef, state: nnx.State, batch: Batch) -> jax.Array:
    return mean_hidden(nnx.merge(graphdef, state), batch)
