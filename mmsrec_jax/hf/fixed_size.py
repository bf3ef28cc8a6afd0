"""Images to patches for towers that take one size: resize, center crop, cut. In numpy, no jax.

The arithmetic is that of the image processors of CLIP, SigLIP, ViT, LLaVA and InternVL (which cuts
an image into several tiles of that size) in transformers, on their PIL backend. Patches stay uint8;
normalization belongs to the device.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmsrec_jax.hf.processor import CLIP_MEAN, CLIP_STD, MAX_ASPECT_RATIO, read_preprocessor
from mmsrec_jax.runtime.errors import UserError

_CROPPED = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "resample": 3,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
}
_SQUARE = {
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
# What each processor of transformers assumes for fields its file leaves out.
_ASSUMED: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CROPPED,
    "BitImageProcessor": _CROPPED,
    "LlavaImageProcessor": _CROPPED,
    "SiglipImageProcessor": _SQUARE | {"resample": 3},
    "ViTImageProcessor": _SQUARE | {"resample": 2},
    "GotOcr2ImageProcessor": _SQUARE
    | {
        "size": {"height": 384, "width": 384},
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "min_patches": 1,
        "max_patches": 12,
    },
}


@dataclasses.dataclass(frozen=True)
class FixedSizeProcessor:
    """What a directory's `preprocessor_config.json` says, for towers of one image size.

    An image is padded to a square (if `pad_to_square`, with the mean colour), resized to `resize`
    (height, width) or so that its shorter side is `shortest_edge` (if not None), and cropped to
    `pixels` (height, width) around its center. A pixel `p` in 0..255 enters the tower as
    `(p * rescale - mean) / std`.

    With `tiles` (least, most) other than (1, 1) it is resized to so many tiles of `pixels` as suit
    its shape instead, and if there are several the whole image follows as one more tile. Every tile
    has `slots` image slots.
    """

    patch_size: int
    pixels: tuple[int, int]
    slots: int
    resize: tuple[int, int] | None = None
    shortest_edge: int | None = None
    pad_to_square: bool = False
    resample: int = 3
    rescale: float = 1 / 255
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    tiles: tuple[int, int] = (1, 1)

    @classmethod
    def from_pretrained(cls, directory: str | Path, patch_size: int) -> "FixedSizeProcessor":
        """Reads `preprocessor_config.json` (see `read_preprocessor`); `slots` are all patches.

        Raises UserError when the file is missing, is not JSON, asks for something not supported or
        does not make all images of one size.
        """
        path, raw = read_preprocessor(directory)
        kind = (raw.get("image_processor_type") or "CLIPImageProcessor").removesuffix("Fast")
        kind = kind.removesuffix("Pil")
        if kind not in _ASSUMED:
            raise UserError(
                f"{path}: image_processor_type {kind!r} is not supported for this model; "
                f"supported: {', '.join(_ASSUMED)}"
            )
        raw = _ASSUMED[kind] | {name: value for name, value in raw.items() if value is not None}
        resize, shortest_edge = _size(path, raw) if raw.get("do_resize", True) else (None, None)
        pixels = _crop(path, raw) if raw["do_center_crop"] else resize
        if pixels is None:
            raise UserError(
                f"{path}: images must come out in one size: give do_center_crop with crop_size, or "
                "size with height and width"
            )
        smallest = resize
        if smallest is None and shortest_edge is not None:
            smallest = shortest_edge, shortest_edge
        if smallest is None or any(a < b for a, b in zip(smallest, pixels, strict=True)):
            raise UserError(
                f"{path}: crop_size {pixels} exceeds what images are resized to; lower it"
            )
        normalize = raw.get("do_normalize", True)
        processor = cls(
            patch_size=patch_size,
            pixels=pixels,
            slots=0,
            resize=resize,
            shortest_edge=shortest_edge,
            pad_to_square=bool(raw.get("do_pad")) and kind == "LlavaImageProcessor",
            resample=raw["resample"],
            rescale=raw.get("rescale_factor", 1 / 255) if raw.get("do_rescale", True) else 1.0,
            mean=tuple(map(float, raw["image_mean"])) if normalize else (0.0,) * 3,
            std=tuple(map(float, raw["image_std"])) if normalize else (1.0,) * 3,
            tiles=_tiles(path, raw, kind) if raw.get("crop_to_patches") else (1, 1),
        )
        rows, columns = processor.patches
        if not rows * columns:
            raise UserError(f"{path}: images of {pixels} pixels hold no patch of {patch_size}")
        return dataclasses.replace(processor, slots=rows * columns)

    @property
    def patches(self) -> tuple[int, int]:
        """Patch rows and columns of a tile; pixels that fill no patch, at the right and below, are
        unused."""
        return self.pixels[0] // self.patch_size, self.pixels[1] // self.patch_size

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patch rows and columns of an image of any size, its tiles one below the other.

        Raises UserError for an empty one.
        """
        if height < 1 or width < 1:
            raise UserError(f"an image of {height} x {width} pixels is empty")
        down, across = self._arrangement(height, width)
        rows, columns = self.patches
        return (down * across + (down * across > 1)) * rows, columns

    def num_slots(self, grid: tuple[int, int]) -> int:
        """Image tokens in the prompt for a grid of patches."""
        return grid[0] // self.patches[0] * self.slots

    def positions(
        self, tokens: np.ndarray, grids: Sequence[tuple[int, int]], image_token_id: int | None
    ) -> np.ndarray:
        """Rope positions int32 [3, L] of one unpadded sequence: 0, 1, ... three times.

        Raises UserError when slots and images do not agree.
        """
        slots, expected = int(np.sum(tokens == image_token_id)), sum(map(self.num_slots, grids))
        if slots != expected:
            raise UserError(
                f"{slots} image slots in the tokens, but the {len(grids)} images given "
                f"need {expected}"
            )
        return np.tile(np.arange(len(tokens), dtype=np.int32), (3, 1))

    def limited(self, max_pixels: int) -> "FixedSizeProcessor":
        """Raises UserError: the size is the tower's."""
        raise UserError(
            f"max_pixels {max_pixels} is set, but the model's images have one size "
            f"({self.pixels[0]} x {self.pixels[1]}); leave it 0"
        )

    def patchify(self, image: np.ndarray) -> dict:
        """One uint8 [H, W, 3] image as patches, tile by tile and row by row.

        Returns `patches` uint8 [n, 3 * patch_size^2] in (channel, row, column) order, `hw` int32
        [n, 2], `window_ids` int32 [n] of 1, and `grid` (rows, columns) of patches, tiles one below
        the other.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(
                f"an image must be uint8 [height, width, 3], got {image.dtype} "
                f"{list(image.shape)}; convert it to 8-bit RGB"
            )
        grid, size = self.grid(*image.shape[:2]), self.patch_size
        rows, columns = self.patches
        image = np.stack(self._cut(image))[:, : rows * size, : columns * size]
        patches = image.reshape(grid[0], size, columns, size, 3).transpose(0, 2, 4, 1, 3)
        hw = np.moveaxis(np.indices(grid, dtype=np.int32), 0, -1).reshape(-1, 2)
        return {
            "patches": np.ascontiguousarray(patches.reshape(len(hw), -1)),
            "hw": hw,
            "window_ids": np.ones(len(hw), np.int32),
            "grid": grid,
        }

    def _arrangement(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles whose ratio is nearest to the image's, as InternVL chooses.

        Of equals the larger, as long as it covers less than twice the image's area.
        """
        least, most = self.tiles
        fitting = sorted(
            (
                (down, across)
                for across in range(1, most + 1)
                for down in range(1, most // across + 1)
                if down * across >= least
            ),
            key=math.prod,
        )
        chosen, nearest = (1, 1), math.inf
        for down, across in fitting:
            distance = abs(width / height - across / down)
            larger = height * width > 0.5 * math.prod(self.pixels) * down * across
            if distance < nearest or (distance == nearest and larger):
                chosen, nearest = (down, across), distance
        return chosen

    def _cut(self, image: np.ndarray) -> list[np.ndarray]:
        """The tiles of an image, uint8 [*pixels, 3] each."""
        down, across = self._arrangement(*image.shape[:2])
        whole = self._sized(image)
        if down * across == 1:
            return [whole]
        height, width = self.pixels
        wide = _resized(image, (down * height, across * width), self.resample)
        tiles = wide.reshape(down, height, across, width, 3).swapaxes(1, 2)
        return [*tiles.reshape(-1, height, width, 3), whole]

    def _sized(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        if self.pad_to_square and height != width:
            image = _padded(image, [int(255 * mean) for mean in self.mean])
        elif max(height, width) > MAX_ASPECT_RATIO * min(height, width):
            raise UserError(
                f"an image of {height} x {width} pixels is longer than {MAX_ASPECT_RATIO} : 1; "
                "crop it"
            )
        height, width = size = image.shape[:2]
        edge = self.shortest_edge
        if self.resize is not None:
            size = self.resize
        elif edge is not None:
            size = (edge, edge * width // height)
            if height > width:
                size = (edge * height // width, edge)
        image = _resized(image, size, self.resample)
        top, left = ((n - m) // 2 for n, m in zip(size, self.pixels, strict=True))
        return image[top : top + self.pixels[0], left : left + self.pixels[1]]


def _resized(image: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    if size == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], resample))


def _padded(image: np.ndarray, colour: Sequence[int]) -> np.ndarray:
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = colour
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def _size(path: Path, raw: dict) -> tuple[tuple[int, int] | None, int | None]:
    """(height and width, None) or (None, shortest edge); a number is what it meant in old files."""
    size = raw["size"]
    if isinstance(size, int):
        size = {"shortest_edge": size} if raw["do_center_crop"] else {"height": size, "width": size}
    if size.keys() == {"height", "width"}:
        return (size["height"], size["width"]), None
    if size.keys() == {"shortest_edge"}:
        return None, size["shortest_edge"]
    raise UserError(f"{path}: size {size} is not supported; give height and width or shortest_edge")


def _tiles(path: Path, raw: dict, kind: str) -> tuple[int, int]:
    if kind != "GotOcr2ImageProcessor":
        raise UserError(f"{path}: crop_to_patches is not supported for {kind}, set it to false")
    least, most = raw["min_patches"], raw["max_patches"]
    if not 1 <= least <= most:
        raise UserError(f"{path}: min_patches {least} must be from 1 to max_patches {most}")
    return least, most


def _crop(path: Path, raw: dict) -> tuple[int, int]:
    crop = raw.get("crop_size")
    if isinstance(crop, int):
        return crop, crop
    if not isinstance(crop, dict) or crop.keys() != {"height", "width"}:
        raise UserError(f"{path}: crop_size {crop} is not supported; give height and width")
    return crop["height"], crop["width"]
