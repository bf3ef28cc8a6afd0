"""Encoded image files to RGB pixels."""

import io

import numpy as np
from PIL import Image, ImageOps


class ImageError(Exception):
    """The bytes are not an image that can be decoded completely."""


def decode(data: bytes) -> np.ndarray:
    """uint8[height, width, 3] of the first frame, upright, blended on white.

    Grayscale, palette, CMYK and 16-bit images become 8-bit RGB.

    Raises:
      ImageError: corrupt, truncated, of an unknown format, or absurdly large.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return np.array(_rgb(ImageOps.exif_transpose(image)))
    except Exception as error:  # Pillow's decoders raise whatever the damage leads to
        reason = " ".join(str(error).split()) or type(error).__name__
        if "cannot identify image file" in reason:
            reason = f"{len(data)} bytes of no known image format"
        raise ImageError(reason) from error


def suffix(data: bytes) -> str:
    """What the file of an encoded image ends with, such as ".jpeg".

    Raises:
      ImageError: of an unknown format.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return f".{image.format.lower()}" if image.format else ""
    except OSError as error:
        raise ImageError(f"{len(data)} bytes of no known image format") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # `convert` would clip 16-bit values at 255 instead of scaling them.
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
