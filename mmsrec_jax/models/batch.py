"""What a model reads: rows of tokens and image patches with static shapes.

Importable without jax, so that input workers can build batches; `models.batch_tree` makes them
pytrees and checks their shapes.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, get_args

import numpy as np

if TYPE_CHECKING:
    # numpy on the host, jax in compiled functions: which one it is no checker can tell.
    Array = Any
else:
    Array = np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Patches:
    """The images of B rows, each row padded to P patches; D = channels * patch_size ** 2.

    Attributes:
      pixels: values of each patch.
      hw: row and column of a patch in the grid of its image.
      image_ids: 1, 2, ... along a row, in the order of the images; 0 is padding.
      window_ids: attention windows, 1, 2, ... along a row over all its images; 0 is padding.
    """

    pixels: Annotated[Array, "uint8[B, P, D]"]
    hw: Annotated[Array, "int32[B, P, 2]"]
    image_ids: Annotated[Array, "int32[B, P]"]
    window_ids: Annotated[Array, "int32[B, P]"]


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """B rows, each padded to L tokens. A field that is None is no part of the pytree.

    Attributes:
      tokens: an image is one token per slot; the k-th slot of a row takes its k-th image feature.
      positions: M-RoPE: time, row and column.
      segment_ids: 1, 2, ... for the examples packed into a row; 0 is padding.
      suffix_ids: 0 for the shared prefix of an example, 1, 2, ... for its suffixes, which do not
        see each other. None: there are no suffixes.
      images: None: text only.
      loss_weights: weight of each token as a target.
      target_positions: where these weights are, at most T a row; -1 = none.
      answer_positions: tokens whose next token is a yes/no label, at most C a row; -1 = none. Those
        of the examples of a row stand one after the other, told apart by their segments.
      labels: 1 for yes.
      index: the source's row (or item) of the example in a row; -1 = a row that only fills the
        batch. None in packed batches.
      ends: the tokens whose hidden states, on average, stand for a row that is one example; None:
        its last one.
    """

    tokens: Annotated[Array, "int32[B, L]"]
    positions: Annotated[Array, "int32[B, 3, L]"]
    segment_ids: Annotated[Array, "int32[B, L]"]
    suffix_ids: Annotated[Array | None, "int32[B, L]"] = None
    images: Patches | None = None
    loss_weights: Annotated[Array | None, "float32[B, L]"] = None
    target_positions: Annotated[Array | None, "int32[B, T]"] = None
    answer_positions: Annotated[Array | None, "int32[B, C]"] = None
    labels: Annotated[Array | None, "int32[B, C]"] = None
    index: Annotated[Array | None, "int32[B]"] = None
    ends: Annotated[Array | None, "int32[B, E]"] = None

    def model_inputs(self) -> "Batch":
        """What a model reads, and nothing that is known of answers."""
        return Batch(
            self.tokens, self.positions, self.segment_ids, self.suffix_ids, images=self.images
        )


def fields_of(batch: Batch | Patches, prefix: str = "") -> Iterator[tuple[str, Array, str]]:
    """(name, array, shape) of every array that is there, such as ("images.hw", ..., "int32[B, P,
    2]")."""
    for field in dataclasses.fields(batch):
        value, name = getattr(batch, field.name), prefix + field.name
        if isinstance(value, Patches):
            yield from fields_of(value, f"{name}.")
        elif value is not None:
            yield name, value, get_args(field.type)[1]


def concatenate(parts: Sequence[Batch]) -> Batch:
    """The rows of batches of numpy arrays, which differ in nothing but their number of rows."""

    def join(values: Sequence) -> Array | Patches | None:
        if values[0] is None:
            return None
        if isinstance(values[0], Patches):
            return Patches(*_columns(values, join))
        return np.concatenate(values)

    return Batch(*_columns(parts, join))


def _columns(parts: Sequence, join: Callable[[Sequence], Array | Patches | None]) -> Iterator:
    for field in dataclasses.fields(parts[0]):
        yield join([getattr(part, field.name) for part in parts])


def text_rows(tokens: Array, lengths: Array) -> Batch:
    """Plain text, one example a row, of tokens int32[B, L] of which the first `lengths` int32[B]
    count. Arrays of numpy or of jax."""
    xp = tokens.__array_namespace__()
    rows, length = tokens.shape
    slots = xp.arange(length, dtype=np.int32)
    return Batch(
        tokens=tokens,
        positions=xp.broadcast_to(slots, (rows, 3, length)),
        segment_ids=(slots < lengths[:, None]).astype(np.int32),
    )


def pack_images(rows: Sequence[Sequence[Mapping]], patches: int, width: int) -> Patches:
    """Images as `ImageProcessor.patchify` gives them, in slot order, one after the other.

    rows: the images of each row, at most `patches` patches together; width: values of a patch.
    """
    packed = no_images(len(rows), patches, width)
    for b, row in enumerate(rows):
        start = windows = 0
        for number, image in enumerate(row, 1):
            span = b, slice(start, start + len(image["hw"]))
            packed.pixels[span] = image["patches"]
            packed.hw[span] = image["hw"]
            packed.image_ids[span] = number
            packed.window_ids[span] = image["window_ids"] + windows
            windows += int(image["window_ids"].max())
            start += len(image["hw"])
    return packed


def no_images(rows: int, patches: int, width: int) -> Patches:
    """Room for the images of a batch, all of it padding."""
    return Patches(
        pixels=np.zeros((rows, patches, width), np.uint8),
        hw=np.zeros((rows, patches, 2), np.int32),
        image_ids=np.zeros((rows, patches), np.int32),
        window_ids=np.zeros((rows, patches), np.int32),
    )
