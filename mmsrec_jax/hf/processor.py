"""Images to patches and tokens to M-RoPE positions, in numpy: input workers import no jax.

The arithmetic is that of Qwen2-VL's image processor (arXiv:2409.12191, section 2.1) and of
Qwen2.5-VL's window attention (arXiv:2502.13923, section 2.1.1), with two differences of form.
Patches stay uint8 and hold one frame: normalization and the repeated second frame of the temporal
patch belong to the device. A window is an id per patch and not a permutation.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmsrec_jax.hf import fields
from mmsrec_jax.models.config import VisionConfig
from mmsrec_jax.models.patches import mrope_positions, patch_hw, window_ids
from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_ASPECT_RATIO = 200


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """What a directory's `preprocessor_config.json` says, and the window of its vision tower.

    `min_pixels` and `max_pixels` bound the area after resizing. `window_size` is in pixels, None
    for towers without windows. A pixel `p` in 0..255 enters the tower as
    `(p * rescale - mean) / std`.
    """

    patch_size: int = 14
    merge_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    do_resize: bool = True
    resample: int = 3
    rescale: float = 1 / 255
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    window_size: int | None = None

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "ImageProcessor":
        """Reads `preprocessor_config.json`, and the window size from `config.json` beside it.

        Raises UserError when the file is missing, is not JSON or asks for something not supported.
        """
        path, raw = read_preprocessor(directory)
        config_path = Path(directory) / "config.json"
        vision: dict[str, Any] = {}
        if config_path.exists():
            vision = fields.config(read_json(config_path)).get("vision_config") or {}
        if raw.get("do_center_crop"):
            raise UserError(f"{path}: do_center_crop is not supported, set it to false")
        size = raw.get("size") or {}
        if isinstance(size, int):
            raise UserError(f"{path}: size {size} is not supported; give min_pixels and max_pixels")
        normalize = raw.get("do_normalize", True)
        values = {
            "min_pixels": _first(
                raw.get("min_pixels"), size.get("shortest_edge"), size.get("min_pixels")
            ),
            "max_pixels": _first(
                raw.get("max_pixels"), size.get("longest_edge"), size.get("max_pixels")
            ),
            "patch_size": raw.get("patch_size"),
            "merge_size": raw.get("merge_size"),
            "do_resize": raw.get("do_resize"),
            "resample": raw.get("resample"),
            "rescale": raw.get("rescale_factor") if raw.get("do_rescale", True) else 1.0,
            "mean": _channels(raw.get("image_mean")) if normalize else (0.0,) * 3,
            "std": _channels(raw.get("image_std")) if normalize else (1.0,) * 3,
            "window_size": raw.get("window_size", vision.get("window_size")),
        }
        processor = cls(**{name: value for name, value in values.items() if value is not None})
        for name in ("patch_size", "merge_size"):
            there = vision.get("spatial_" + name, vision.get(name))
            if there is not None and there != getattr(processor, name):
                raise UserError(
                    f"{path}: {name} is {getattr(processor, name)}, but config.json says {there}"
                )
        if processor.min_pixels > processor.max_pixels:
            raise UserError(f"{path}: min_pixels exceeds max_pixels")
        return processor

    @classmethod
    def for_tower(cls, vision: VisionConfig, min_pixels: int, max_pixels: int) -> "ImageProcessor":
        """The processor of a tower trained from scratch; `save_pretrained` puts it beside it."""
        return cls(
            patch_size=vision.patch_size,
            merge_size=vision.merge,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            mean=vision.image_mean,
            std=vision.image_std,
            window_size=vision.window_size,
        )

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes `preprocessor_config.json` in the form transformers reads too."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        raw = {
            "image_processor_type": "Qwen2VLImageProcessor",
            "do_convert_rgb": True,
            "do_resize": self.do_resize,
            "resample": self.resample,
            "size": {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
            "do_rescale": True,
            "rescale_factor": self.rescale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "patch_size": self.patch_size,
            "temporal_patch_size": 2,
            "merge_size": self.merge_size,
        }
        if self.window_size is not None:
            raw["window_size"] = self.window_size
        partial = directory / "preprocessor_config.json.partial"
        partial.write_text(json.dumps(raw, indent=2) + "\n")
        partial.replace(directory / "preprocessor_config.json")

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patch rows and columns of an image of `height` x `width` pixels after resizing."""
        factor = self.patch_size * self.merge_size
        if height < 1 or width < 1:
            raise UserError(f"an image of {height} x {width} pixels is empty")
        if self.do_resize:
            height, width = smart_resize(height, width, factor, self.min_pixels, self.max_pixels)
        elif height % factor or width % factor:
            raise UserError(
                f"an image of {height} x {width} pixels does not divide by {factor} and "
                "preprocessor_config.json has do_resize false; resize the image or set do_resize"
            )
        return height // self.patch_size, width // self.patch_size

    def num_slots(self, grid: tuple[int, int]) -> int:
        """Image tokens in the prompt for a grid of patches."""
        return grid[0] * grid[1] // self.merge_size**2

    def positions(
        self, tokens: np.ndarray, grids: Sequence[tuple[int, int]], image_token_id: int | None
    ) -> np.ndarray:
        """Rope positions int32 [3, L] of one unpadded sequence; see `mrope_positions`."""
        return mrope_positions(tokens, grids, image_token_id, self.merge_size)

    def limited(self, max_pixels: int) -> "ImageProcessor":
        """The processor with images of at most `max_pixels` after resizing."""
        least = min(max_pixels, self.min_pixels)
        return dataclasses.replace(self, max_pixels=max_pixels, min_pixels=least)

    def patchify(self, image: np.ndarray | Image.Image) -> dict:
        """One uint8 [H, W, 3] image, or one of Pillow in RGB, as patches in merge-block order.

        Blocks of `merge_size`^2 patches are contiguous, row-major within and among blocks. Returns
        `patches` uint8 [n, 3 * patch_size^2] in (channel, row, column) order, `hw` int32 [n, 2],
        `window_ids` int32 [n] from 1, and `grid` (rows, columns) of patches.
        """
        height, width = _height_and_width(image)
        grid = self.grid(height, width)
        resized = grid[0] * self.patch_size, grid[1] * self.patch_size
        if (height, width) != resized:
            picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
            image = picture.resize(resized[::-1], self.resample)
        pixels = np.asarray(image)
        merge, size = self.merge_size, self.patch_size
        blocks = pixels.reshape(grid[0] // merge, merge, size, grid[1] // merge, merge, size, 3)
        patches = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(grid[0] * grid[1], 3 * size * size)
        hw = patch_hw(grid, merge)
        return {
            "patches": np.ascontiguousarray(patches),
            "hw": hw,
            "window_ids": window_ids(hw, grid, size, self.window_size, merge),
            "grid": grid,
        }


def _height_and_width(image: np.ndarray | Image.Image) -> tuple[int, int]:
    if isinstance(image, Image.Image):
        if image.mode != "RGB":
            raise UserError(f"an image must be RGB, got {image.mode}; convert it to RGB")
        return image.height, image.width
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise UserError(
            f"an image must be uint8 [height, width, 3], got {image.dtype} "
            f"{list(image.shape)}; convert it to 8-bit RGB"
        )
    return image.shape[0], image.shape[1]


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """The size nearest to the image's that divides by `factor` and whose area is within bounds.

    Keeps the aspect ratio as far as rounding allows. Raises UserError beyond 200 : 1.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise UserError(
            f"an image of {height} x {width} pixels is longer than {MAX_ASPECT_RATIO} : 1; crop it"
        )
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def read_preprocessor(directory: str | Path) -> tuple[Path, dict]:
    """The file that describes a directory's image processor, and the fields in it.

    It is `preprocessor_config.json`, or the part of `processor_config.json` in which transformers 5
    saves it with the tokenizer. Raises UserError when there is neither, and for a value that its
    field cannot have.
    """
    path = Path(directory) / "preprocessor_config.json"
    whole = Path(directory) / "processor_config.json"
    if not path.exists() and whole.exists():
        part = read_json(whole).get("image_processor")
        if isinstance(part, dict):
            return whole, fields.preprocessor(part, whole)
    return path, fields.preprocessor(read_json(path), path)


def read_json(path: Path) -> dict:
    """A JSON object from a file. Raises UserError when it is missing or is not an object."""
    if not path.exists():
        raise UserError(f"{path}: no such file; is this a Hugging Face model directory?")
    raw = reading.read_json(path, within=reading.home(path.parent))
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a JSON object is expected")
    return raw


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _channels(value: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if value is None else tuple(float(v) for v in value)
