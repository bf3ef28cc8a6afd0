"""Next-token logits of token ids and images, numpy in and out."""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from flax import nnx

from mmsrec_jax.models.batch import Batch, Patches, pack_images
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime.errors import UserError


def logits(
    model: MLLM,
    input_ids: np.ndarray,
    attention_mask: np.ndarray,
    images: Sequence[Sequence[np.ndarray]],
) -> np.ndarray:
    """Next-token logits float32 [B, L, V]; for looking at a model, not for training.

    input_ids int [B, L] with image slots expanded, attention_mask [B, L] of 0 and 1, padded left or
    right; images: per row the uint8 [H, W, 3] images in slot order. Logits under padding mean
    nothing. Raises UserError when a row's slots and images do not agree.

    >>> model = mmsrec_jax.load("models/tiny")
    >>> input_ids = np.array([[30, 31, 32], [33, 34, 0]])
    >>> attention_mask = np.array([[1, 1, 1], [1, 1, 0]])
    >>> mmsrec_jax.logits(model, input_ids, attention_mask, images=[[], []]).shape[:2]
    (2, 3)
    """
    graphdef, state = nnx.split(model)
    batch = make_batch(model, input_ids, attention_mask, images)
    return np.asarray(_logits(graphdef, state, batch))


def make_batch(
    model: MLLM,
    input_ids: np.ndarray,
    attention_mask: np.ndarray,
    images: Sequence[Sequence[np.ndarray]],
) -> Batch:
    """What `MLLM` takes, in numpy, of the arguments of `logits`; a row's patches are padded to
    those of the fullest row."""
    input_ids, mask = np.asarray(input_ids), np.asarray(attention_mask).astype(bool)
    if input_ids.ndim != 2 or mask.shape != input_ids.shape or len(images) != len(input_ids):
        raise UserError(
            f"input_ids {list(input_ids.shape)} and attention_mask {list(mask.shape)} must be "
            f"[rows, tokens], with a list of images per row ({len(images)} given)"
        )
    if any(images) and model.vision is None:
        raise UserError("images are given, but the model is text-only: it has no vision tower")
    rows = [
        [_patchify(model, image, f"row {i}, image {k}") for k, image in enumerate(row)]
        for i, row in enumerate(images)
    ]
    positions = np.zeros((len(rows), 3, input_ids.shape[1]), np.int32)
    for index, (row, tokens, kept) in enumerate(zip(rows, input_ids, mask, strict=True)):
        if model.processor is None:
            positions[index][:, kept] = np.arange(kept.sum())
            continue
        try:
            positions[index][:, kept] = model.processor.positions(
                tokens[kept], [image["grid"] for image in row], model.config.image_token_id
            )
        except UserError as error:
            raise UserError(f"row {index}: {error}") from None
    return Batch(
        tokens=input_ids.astype(np.int32),
        positions=positions,
        segment_ids=mask.astype(np.int32),
        images=_packed(rows),
    )


def _patchify(model: MLLM, image: np.ndarray, where: str) -> dict:
    try:
        return model.processor.patchify(image)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _packed(rows: list[list[dict]]) -> Patches | None:
    longest = max((sum(len(image["hw"]) for image in row) for row in rows), default=0)
    if longest == 0:
        return None
    width = next(image["patches"].shape[1] for row in rows for image in row)
    return pack_images(rows, longest, width)


@partial(jax.jit, static_argnums=0)
def _logits(graphdef: nnx.GraphDef, state: nnx.State, batch: Batch) -> jax.Array:
    model = nnx.merge(graphdef, state)
    return model.unembed(model(batch))
