"""Items found by words of their titles, keywords and ids."""

import copy
import threading
from collections.abc import Callable, Sequence

from absl import logging

from mmsrec_jax.data.records import Catalog
from mmsrec_jax.runtime.errors import first_line
from mmsrec_jax.runtime.progress import Progress

_LONGEST = 200  # characters of a title, and of keywords, that are searched


class ItemSearch:
    """What is searched is read once, in a thread; the items read so far are found meanwhile.

    Args:
      catalog: of the run.
      keywords: of an item.
    """

    def __init__(self, catalog: Catalog, keywords: Callable[[int], Sequence[str]]):
        self._catalog, self._keywords = catalog, keywords
        self._lines: list[str] = []
        self._problem = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def find(self, catalog: Catalog, words: str, most: int) -> tuple[list[int], int]:
        """The first items that have all the words, an item of this very id before all others; and
        how many items have them.

        catalog: that of the run with new items behind its own.
        """
        wanted = words.casefold().split()
        # The reader appends meanwhile; what it appends is found too.
        found = [i for i, line in enumerate(self._lines) if all(word in line for word in wanted)]
        for number in range(len(self._catalog), len(catalog)):
            line = _line(catalog, number, self._keywords)
            found += [number] if all(word in line for word in wanted) else []
        if (exact := catalog.index.get(words)) is not None:
            found = [exact, *(number for number in found if number != exact)]
        return found[:most], len(found)

    @property
    def num_left(self) -> int:
        """Items that are not read yet."""
        return len(self._catalog) - len(self._lines)

    @property
    def problem(self) -> str:
        """One line: why no more items are read; empty where nothing failed."""
        return self._problem

    def wait(self) -> None:
        """Until all items are read."""
        self._reader.join()

    def _read(self) -> None:
        own = copy.deepcopy(self._catalog)  # which opens the files for itself
        progress = Progress("titles for the search", len(own), unit="items")
        try:
            for number in range(len(own)):
                self._lines.append(_line(own, number, self._keywords))
                progress.update()
        except Exception as error:
            self._problem = first_line(error)
            logging.warning("the search has no more items: %s", self._problem)


def _line(catalog: Catalog, number: int, keywords: Callable[[int], Sequence[str]]) -> str:
    """All words of an item that are searched."""
    parts = (str(catalog.ids[number]), catalog[number].title, ", ".join(keywords(number)))
    return "\n".join(part[:_LONGEST] for part in parts).casefold()
