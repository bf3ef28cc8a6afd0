"""Items as prompts show them."""

import dataclasses
import io
from collections import Counter

import numpy as np
import toy_items
from PIL import Image

from mmsrec_jax.data.records import Catalog
from mmsrec_jax.inputs.item_renderer import ItemRenderer


def file_of(image, format, **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def test_odd_images_are_used_and_a_thread_of_pixels_is_counted(prompt_config):
    """1 x 4000 pixels fit no grid: such an item is shown by its text."""
    red = Image.new("RGB", (16, 16), "red")
    wide = Image.fromarray(np.full((16, 16), 40000, np.uint16))
    files = [
        file_of(red.convert("CMYK"), "JPEG"),
        file_of(red.convert("RGBA"), "PNG"),
        file_of(red, "GIF", save_all=True, append_images=[Image.new("RGB", (16, 16), "blue")]),
        file_of(wide, "PNG"),
        file_of(Image.new("RGB", (4000, 1)), "PNG"),
    ]
    made = [
        dataclasses.replace(item, image=image)
        for item, image in zip(toy_items.items(len(files)), files, strict=True)
    ]
    source, counts = ItemRenderer(Catalog.from_items(made), prompt_config), Counter()
    found = [source.image(i, counts) for i in range(len(files))]
    assert [image is None for image in found] == [False] * 4 + [True]
    assert counts["images_missing"] == 1
