import io

import numpy as np
import pytest
from PIL import Image

from mmsrec_jax.data.images import ImageError, decode, shrunk

RAMP = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def test_rgb_png_is_exact():
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(RAMP), "PNG")), RAMP)


def test_grey_repeats_over_the_channels():
    pixels = decode(encoded(Image.fromarray(RAMP[..., 0]), "PNG"))
    np.testing.assert_array_equal(pixels, np.repeat(RAMP[..., :1], 3, axis=2))


def test_sixteen_bits_are_scaled_not_clipped():
    wide = np.array([[0, 257 * 100, 65535, 300]], dtype=np.uint16)
    pixels = decode(encoded(Image.fromarray(wide), "PNG"))
    np.testing.assert_array_equal(pixels[..., 0], [[0, 100, 255, 1]])
    assert pixels.shape == (1, 4, 3)


def test_alpha_lies_on_white():
    rgba = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 128]]], dtype=np.uint8)
    pixels = decode(encoded(Image.fromarray(rgba), "PNG")).astype(int)
    np.testing.assert_array_equal(pixels[0, :2], [[200, 0, 0], [255, 255, 255]])
    np.testing.assert_allclose(pixels[0, 2], 255 * (1 - 128 / 255), atol=1)


def test_palette_with_a_transparent_colour():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    pixels = decode(encoded(image, "PNG", transparency=0))
    np.testing.assert_array_equal(pixels, [[[255, 255, 255], [40, 50, 60]]])


def test_cmyk_jpeg():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    pixels = decode(encoded(image, "JPEG", quality=95))
    np.testing.assert_allclose(pixels.reshape(-1, 3).mean(0), [255, 0, 0], atol=6)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation(format):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
    np.testing.assert_allclose(decode(data)[0, 0].astype(int), [255, 0, 0], atol=3)


def test_exif_orientation_turns_the_image_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    pixels = decode(encoded(Image.fromarray(RAMP), "PNG", exif=exif))
    np.testing.assert_array_equal(pixels, np.rot90(RAMP, k=-1))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated_files_are_refused(format):
    large = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(large), format)
    with pytest.raises(ImageError):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff\xe0junk"])
def test_other_bytes_are_refused_in_one_line(data):
    with pytest.raises(ImageError) as error:
        decode(data)
    assert "\n" not in str(error.value) and "0x" not in str(error.value)


def _halves(turned: bool) -> Image.Image:
    """900 x 300: red on the left, blue on the right; or the same stored a quarter turn back."""
    image = Image.new("RGB", (900, 300), "red")
    image.paste("blue", (450, 0, 900, 300))
    return image.transpose(Image.Transpose.ROTATE_90) if turned else image


@pytest.mark.parametrize(
    ("format", "options", "turned"),
    [
        ("JPEG", {}, False), ("JPEG", {"orientation": 6}, True), ("PNG", {}, False),
        ("WEBP", {"orientation": 6}, True),
    ],
)  # fmt: skip
def test_shrunk_is_a_small_upright_jpeg(format, options, turned):
    exif = Image.Exif()
    if "orientation" in options:
        exif[0x0112] = options["orientation"]
    data, width, height = shrunk(encoded(_halves(turned), format, exif=exif), 90)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("JPEG", (90, 30))
    assert (width, height) == (90, 30)
    pixels = decode(data).astype(int)
    np.testing.assert_allclose(pixels[:, 5:40].mean((0, 1)), [255, 0, 0], atol=12)
    np.testing.assert_allclose(pixels[:, 50:85].mean((0, 1)), [0, 0, 255], atol=12)


def test_shrunk_keeps_what_is_small_and_encodes_the_rest():
    small = encoded(Image.fromarray(RAMP), "JPEG")
    assert shrunk(small, 9) == (small, 7, 9)
    assert shrunk(small, 8)[1:] == (6, 8)
    deep = np.full((4, 4), 257 * 100, np.uint16)
    gray = decode(shrunk(encoded(Image.fromarray(deep), "PNG"), 2)[0])
    np.testing.assert_allclose(gray, 100, atol=2)
    clear = encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "PNG")
    np.testing.assert_allclose(decode(shrunk(clear, 8)[0]), 255, atol=2)
    with pytest.raises(ImageError, match="truncated"):
        shrunk(small[:-40], 9)
    with pytest.raises(ImageError, match="truncated"):
        shrunk(encoded(_halves(False), "JPEG")[:-40], 90)
