"""Small pictures of items inside a page, up to a number of bytes in all."""

import base64

from mmsrec_jax.data import images
from mmsrec_jax.data.images import ImageError
from mmsrec_jax.data.records import Catalog
from mmsrec_jax.pages.markup import Html, clipped, element

SIDE = 96  # pixels of the longer side: twice what is shown, for fine screens
_LONGEST_TITLE = 120


class Pictures:
    """Thumbnails of the items of a catalog. One is made once, however often pages show it.

    Args:
      catalog: whose items' pictures are shown.
      budget: bytes of picture data that one page may hold.
    """

    def __init__(self, catalog: Catalog, budget: int = 3_000_000):
        self._catalog, self._budget = catalog, budget
        self._made: dict[int, tuple[str, bool] | None] = {}
        self._spent = 0
        self.left_out = 0

    def begin(self) -> None:
        """A new page: the whole budget is there again."""
        self._spent = self.left_out = 0

    def picture(self, item: int) -> Html:
        """An `img` with the item's title as its text; a box that says so where there is none."""
        name = clipped(self._catalog[item].title, _LONGEST_TITLE) or str(self._catalog.ids[item])
        if not self._catalog.has_image[item]:
            return _box("no picture", f"{name}: no picture")
        if item not in self._made:
            self._made[item] = _encoded(self._catalog[item].image)
        made = self._made[item]
        if made is None:
            return _box("unreadable", f"{name}: the picture cannot be read")
        source, is_small = made
        if self._spent + len(source) > self._budget:
            self.left_out += 1
            return _box("left out", f"{name}: the picture is left out to keep the page small")
        self._spent += len(source)
        return element(
            "img",
            src=source,
            alt=name,
            class_="picture small" if is_small else "picture",
            decoding="async",
        )


def _encoded(image: bytes | None) -> tuple[str, bool] | None:
    """A data URI of a picture, and whether it is smaller than it is shown."""
    try:
        data, kind, size = images.thumbnail(image or b"", SIDE)
    except ImageError:
        return None
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}", max(size) < SIDE // 2


def _box(text: str, label: str) -> Html:
    return element(
        "span", element("span", text, aria_hidden="true"), class_="picture none", role="img",
        aria_label=label,
    )  # fmt: skip
