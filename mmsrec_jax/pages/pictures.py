"""Small pictures of items inside a page, up to a number of bytes in all."""

import base64
import dataclasses

from mmsrec_jax.data import images
from mmsrec_jax.data.images import ImageError
from mmsrec_jax.data.records import Catalog, Item
from mmsrec_jax.pages.markup import Html, clipped, element

SIDE = 96  # pixels of the longer side: twice what is shown, for fine screens
_LONGEST_TITLE = 120


class Pictures:
    """The items of a catalog that pages show, each read and drawn once.

    Args:
      catalog: whose items are shown.
      budget: bytes of picture data that one page may hold.
    """

    def __init__(self, catalog: Catalog, budget: int = 3_000_000):
        self._catalog, self._budget = catalog, budget
        self._items: dict[int, tuple[Item, Html | None]] = {}
        self._spent = 0
        self.left_out = 0

    def begin(self) -> None:
        """A new page: the whole budget is there again."""
        self._spent = self.left_out = 0

    def item(self, number: int) -> Item:
        """An item without the bytes of its picture."""
        return self._read(number)[0]

    def picture(self, number: int) -> Html:
        """An `img` with the item's title as its text; a box that says so where there is none, or
        where the budget is spent."""
        item, image = self._read(number)
        name = clipped(item.title, _LONGEST_TITLE) or item.id
        if image is None:
            return _box("no picture", f"{name}: no picture")
        if self._spent + len(image) > self._budget:
            self.left_out += 1
            return _box("left out", f"{name}: the picture is left out to keep the page small")
        self._spent += len(image)
        return image

    def _read(self, number: int) -> tuple[Item, Html | None]:
        if number not in self._items:
            item = self._catalog[number]
            name = clipped(item.title, _LONGEST_TITLE) or item.id
            image = None if item.image is None else _drawn(item.image, name)
            self._items[number] = dataclasses.replace(item, image=None), image
        return self._items[number]


def _drawn(image: bytes, name: str) -> Html:
    try:
        data, kind, size = images.thumbnail(image, SIDE)
    except ImageError:
        return _box("unreadable", f"{name}: the picture cannot be read")
    return element(
        "img",
        src=f"data:image/{kind};base64,{base64.b64encode(data).decode()}",
        alt=name,
        class_="picture small" if max(size) < SIDE // 2 else "picture",
    )


def _box(text: str, label: str) -> Html:
    return element(
        "span", element("span", text, aria_hidden="true"), class_="picture none", role="img",
        aria_label=label,
    )  # fmt: skip
