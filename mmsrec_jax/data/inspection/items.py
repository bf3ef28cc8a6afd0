"""The texts of all items, read once and without their pictures."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from mmsrec_jax.data.records import Item


class ItemTexts:
    """Columns of what items have.

    counts, attributes: field -> items that have it; categories: items that have one. whole: all
    text of each item, "" of those without. is_bare: bool[N], no text. has_image: bool[N].
    """

    def __init__(self, items: Iterable[Item], has_image: np.ndarray):
        self.has_image = has_image
        self.counts: Counter[str] = Counter()
        self.attributes: Counter[str] = Counter()
        self.categories = 0
        self._fields: list[dict[str, str]] = []
        for item in items:
            self.counts.update(item.text.keys())
            self.attributes.update(item.attributes.keys())
            self.categories += item.category is not None
            self._fields.append(item.text)
        self.whole = [". ".join(text.values()) for text in self._fields]
        self.is_bare = np.array([not text for text in self.whole], bool)

    def field(
        self, name: str, chosen: Sequence[int] | np.ndarray, *, keep_empty: bool = False
    ) -> list[str]:
        """A text field of the chosen items, of those that have it unless `keep_empty`."""
        values = [self._fields[i].get(name, "") for i in chosen]
        return values if keep_empty else [value for value in values if value]
