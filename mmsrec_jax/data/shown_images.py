"""A catalog whose items show other pictures than their own, to measure what pictures are worth."""

import dataclasses
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mmsrec_jax.data import images
from mmsrec_jax.data.records import Catalog, Item, ItemSource

SHOWN = ("own", "shuffled", "blank")


def with_images(catalog: Catalog, shown: str, seed: int) -> Catalog:
    """`catalog` with the pictures that `shown` names; items without a picture stay without.

    Args:
      shown: "own"; "shuffled", the picture of another item; or "blank", an empty one of the same
        size.
      seed: of the shuffle.
    """
    if shown == "own":
        return catalog
    source: ItemSource = _Blank(catalog)
    if shown == "shuffled":
        source = _Shuffled(catalog, other_items(catalog.has_image, seed))
    return Catalog(source, catalog.ids, catalog.has_image)


def other_items(has_image: np.ndarray, seed: int) -> np.ndarray:
    """Of every item, the one whose picture it shows: int64[N], a permutation.

    Items with a picture exchange them along one random cycle, so that no two show the same and,
    unless it is the only one, none shows its own. Items without have their own index.
    """
    of_item = np.arange(len(has_image))
    cycle = np.random.default_rng(seed).permutation(np.flatnonzero(has_image))
    of_item[cycle] = np.roll(cycle, -1)
    return of_item


@dataclass(frozen=True)
class _Shuffled:
    catalog: Catalog
    of_item: np.ndarray

    def __getitem__(self, i: int) -> Item:
        item, other = self.catalog[i], int(self.of_item[i])
        return item if other == i else dataclasses.replace(item, image=self.catalog[other].image)


@dataclass(frozen=True)
class _Blank:
    catalog: Catalog

    def __getitem__(self, i: int) -> Item:
        item = self.catalog[i]
        return item if item.image is None else dataclasses.replace(item, image=_blank(item.image))


def _blank(encoded: bytes) -> bytes:
    """A gray PNG of the size of an encoded picture.

    Raises:
      ImageError: it is of no known format.
    """
    with images.opened(encoded) as image:
        size = image.size
    png = io.BytesIO()
    Image.new("RGB", size, (128, 128, 128)).save(png, "PNG")
    return png.getvalue()
