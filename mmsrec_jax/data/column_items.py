"""Items whose fields are columns in memory, with images in a folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmsrec_jax.data.images import LARGEST_FILE
from mmsrec_jax.data.records import Item
from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError, first_line

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # in order of preference


class ColumnItems:
    """The items in the order of `ids`; images are read from disk when they are asked for.

    text, attributes: field -> a value for each item, empty where it has none; category likewise.
    images: item id -> file.
    """

    def __init__(
        self,
        ids: list[str],
        text: dict[str, list[str]],
        category: list[str] | None,
        attributes: dict[str, list[str]],
        images: dict[str, Path],
    ):
        self.ids = ids
        self._text = text
        self._category = category
        self._attributes = attributes
        self._images = images

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Item:
        id = self.ids[i]
        return Item(
            id=id,
            text={name: column[i] for name, column in self._text.items() if column[i]},
            image=self._image(id),
            category=(self._category[i] or None) if self._category else None,
            attributes={name: column[i] for name, column in self._attributes.items() if column[i]},
        )

    def __iter__(self) -> Iterator[Item]:
        return (self[i] for i in range(len(self)))

    def _image(self, id: str) -> bytes | None:
        path = self._images.get(id)
        if path is None:
            return None
        return reading.read_bytes(path, most=LARGEST_FILE, within=path.parent)

    @property
    def has_image(self) -> np.ndarray:
        """bool[N]: a file exists, sound or not."""
        return np.array([id in self._images for id in self.ids], dtype=bool)

    def image_name(self, id: str) -> str:
        """The image file of an item, for messages."""
        return str(self._images[id])

    def without_images(self) -> "ColumnItems":
        """The same items, for those who read no pictures."""
        return ColumnItems(self.ids, self._text, self._category, self._attributes, images={})

    def select(self, kept: np.ndarray) -> "ColumnItems":
        """The items at the indices `kept`, in that order."""

        def take(column: list[str]) -> list[str]:
            return [column[i] for i in kept.tolist()]

        return ColumnItems(
            take(self.ids),
            {name: take(column) for name, column in self._text.items()},
            take(self._category) if self._category else None,
            {name: take(column) for name, column in self._attributes.items()},
            self._images,
        )


def image_files(folder: Path, within: Path | None) -> dict[str, Path]:
    """item id -> file of a folder of <item_id>.jpg, .jpeg, .png or .webp, which may be absent.

    Raises:
      UserError: the folder cannot be listed, or is a link that leaves the folder `within`.
    """
    if not os.path.lexists(folder):
        return {}
    found: dict[str, Path] = {}
    try:
        if within is not None and not folder.resolve().is_relative_to(within):
            raise UserError(
                f"{folder}: a link that leaves the data set; give the folder that it leads to as "
                "config.data.images_root"
            )
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                stem, suffix = os.path.splitext(entry.name)
                if suffix.lower() not in _IMAGE_SUFFIXES:
                    continue
                path = folder / entry.name
                if not entry.is_file(follow_symlinks=False):
                    reading.check_regular(path, within=folder)
                rank = _IMAGE_SUFFIXES.index(suffix.lower())
                if stem not in found or rank < _IMAGE_SUFFIXES.index(found[stem].suffix.lower()):
                    found[stem] = path
    except OSError as error:
        raise UserError(f"{folder}: the images cannot be listed ({first_line(error)})") from error
    return found
