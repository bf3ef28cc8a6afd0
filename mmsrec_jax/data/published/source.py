"""What a published data set is made of: the description that each publisher's module gives."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from mmsrec_jax.data.column_items import image_files
from mmsrec_jax.data.published.files import File
from mmsrec_jax.data.published.rows import Notes, Rows
from mmsrec_jax.data.user_attributes import UserRow


class ItemRow(NamedTuple):
    """One item: text of the fields that it has, and the address of its picture, if any."""

    id: str
    text: dict[str, str]
    image_url: str = ""


class RowReader(Protocol):
    """The interactions of a file, in parts of bounded size."""

    def __call__(self, path: Path, *, notes: Notes) -> Iterator[Rows]: ...


# Files in the order of `Source.item_files`; ids that are wanted, None for all; what was noticed.
ItemReader = Callable[[Sequence[Path], Collection[str] | None, Notes], Iterator[ItemRow]]


@dataclass(frozen=True)
class Users:
    """What users state of themselves.

    file: which says it. fields: what may be asked for. rows: reads the file; every row has all
      fields that the user states.
    """

    file: File
    fields: tuple[str, ...]
    rows: Callable[[Path], Iterator[UserRow]]


def first_folder(*names: str) -> Callable[[Path], list[Path]]:
    """A function: folder of a data set -> the first of these names in it, if any; what is no
    folder is refused by whoever lists it."""

    def found(root: Path) -> list[Path]:
        return [root / name for name in names if os.path.lexists(root / name)][:1]

    return found


@dataclass(frozen=True)
class Source:
    """One data set of a publisher.

    publisher, config: of its name, such as "amazon_reviews_2014/Beauty". page: where people get
      it. interactions: split -> file; one split "interactions", or those of a published benchmark.
    rows: reads one of them. item_files: those that describe items, none where only ids exist.
    described: reads them, an item as often as it is there. fields: names of the text fields, in
      order.
    image_folders: folder of the data set -> those in it that hold <item_id>.jpg. archive: the zip
      that holds all files, where it is one. users: None where the publisher states nothing of them.
    """

    publisher: str
    config: str
    page: str
    interactions: Mapping[str, File]
    rows: RowReader
    item_files: tuple[File, ...]
    described: ItemReader
    fields: tuple[str, ...]
    image_folders: Callable[[Path], list[Path]] = first_folder("images")
    archive: File | None = None
    users: Users | None = None

    @property
    def name(self) -> str:
        return f"{self.publisher}/{self.config}"

    @property
    def files(self) -> tuple[File, ...]:
        """All files that are read, but images and what users state."""
        return (*self.interactions.values(), *self.item_files)

    @property
    def is_offered(self) -> bool:
        """Whether the publisher lets everyone download the files, without a login."""
        return self.archive is not None or all(file.url for file in self.files)

    def items(
        self, paths: Sequence[Path], wanted: Collection[str] | None, notes: Notes
    ) -> Iterator[ItemRow]:
        """The items in the order of the files, each once; arguments as of `ItemReader`."""
        seen: set[str] = set()
        for item in self.described(paths, wanted, notes):
            if item.id in seen:
                notes["items described twice, the first one kept"] += 1
                continue
            seen.add(item.id)
            yield item

    def images(self, root: Path) -> dict[str, Path]:
        """item id -> image file below `root`. Raises UserError for what is no regular file."""
        found: dict[str, Path] = {}
        for folder in self.image_folders(root):
            found |= image_files(folder, within=root.resolve())
        return found
