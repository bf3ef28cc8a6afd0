"""Encoded image files to RGB pixels."""

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageOps

# Pillow knows many more; some of them start other programs (EPS) or read other files.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
MOST_PIXELS = 40_000_000  # of an image; decoding takes up to 20 bytes for each
LARGEST_FILE = 1 << 28  # bytes
_QUALITY = 90  # of JPEG files that are written

# Pillow warns of images above a limit of its own; ours is lower and refuses them.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(Exception):
    """The bytes are not an image that can be decoded completely."""


def decode(data: bytes) -> np.ndarray:
    """uint8[height, width, 3], the pixels of `picture`; raises ImageError as it does."""
    return np.array(picture(data))


def picture(data: bytes) -> Image.Image:
    """The first frame in RGB, upright, blended on white.

    Grayscale, palette, CMYK and 16-bit images become 8-bit RGB.

    Raises:
      ImageError: corrupt, truncated, of a format that is not in `FORMATS`, or of more than
        `MOST_PIXELS`.
    """
    with opened(data) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _rgb(image)


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """The image, its header read; raises ImageError as `decode`, also for errors of the block."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise ImageError(
                    f"{width} x {height} pixels, more than {MOST_PIXELS:,}; make it smaller"
                )
            yield image
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever the damage leads to
        reason = " ".join(str(error).split()) or type(error).__name__
        if "cannot identify image file" in reason:
            reason = f"{len(data)} bytes of no known image format ({', '.join(FORMATS)})"
        raise ImageError(reason[:200]) from error


def shrunk(data: bytes, max_side: int) -> tuple[bytes, int, int]:
    """A JPEG file with no side longer than `max_side` pixels, its width and its height.

    Decoded as by `decode`. The bytes stay as they are where they are such a file already.

    Raises:
      ImageError: as `decode`.
    """
    with opened(data) as image:
        is_jpeg = image.format == "JPEG"
        is_upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        is_plain = image.mode in ("RGB", "L") and max(image.size) <= max_side
        if is_jpeg and is_upright and is_plain:
            image.load()
            return data, *image.size
        if is_jpeg:
            image.draft(None, (max_side, max_side))  # the decoder halves sides at no cost
        small = _rgb(ImageOps.exif_transpose(image))
        small.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        jpeg = io.BytesIO()
        small.save(jpeg, "JPEG", quality=_QUALITY)
        return jpeg.getvalue(), *small.size


def thumbnail(data: bytes, side: int) -> tuple[bytes, str, tuple[int, int]]:
    """A picture of at most `side` x `side` pixels, made anew from the pixels: its bytes, "jpeg" or
    "png" (of small ones, which JPEG would blur), and its width and height.

    Raises:
      ImageError: as `decode`.
    """
    with opened(data) as image:
        image.draft("RGB", (2 * side, 2 * side))  # JPEG is decoded at no more than it needs
        image.load()
        small = _rgb(ImageOps.exif_transpose(image))
        is_small = max(small.size) <= side
        small.thumbnail((side, side))
        made = io.BytesIO()
        if is_small:
            small.save(made, "PNG", optimize=True)
        else:
            small.save(made, "JPEG", quality=80)
        return made.getvalue(), "png" if is_small else "jpeg", small.size


def suffix(data: bytes) -> str:
    """What the file of an encoded image ends with, such as ".jpeg".

    Raises:
      ImageError: of a format that is not in `FORMATS`, or of too many pixels.
    """
    with opened(data) as image:
        return f".{image.format.lower()}" if image.format else ""


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # `convert` would clip 16-bit values at 255 instead of scaling them.
        wide = np.asarray(image).clip(0, 65535).astype(np.uint32)
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
