"""RecBole atomic files: `<name>.inter[.gz]`, `<name>.item[.gz]` and `images/<item_id>.<suffix>`.

Tab-separated UTF-8 with a header of `name:type`, type one of token, token_seq, float, float_seq.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mmsrec_jax.data import filters
from mmsrec_jax.data.atomic_table import Table
from mmsrec_jax.data.images import LARGEST_FILE
from mmsrec_jax.data.records import Histories, Item, are_positions
from mmsrec_jax.data.report import Report, describe
from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError, first_line

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # in order of preference


class AtomicItems:
    """The items in file order, images read from disk one by one as they are asked for."""

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

    def without_images(self) -> "AtomicItems":
        """The same items, for those who read no pictures."""
        return AtomicItems(self.ids, self._text, self._category, self._attributes, images={})

    def select(self, kept: np.ndarray) -> "AtomicItems":
        """The items at the indices `kept`, in that order."""

        def take(column: list[str]) -> list[str]:
            return [column[i] for i in kept.tolist()]

        return AtomicItems(
            take(self.ids),
            {name: take(column) for name, column in self._text.items()},
            take(self._category) if self._category else None,
            {name: take(column) for name, column in self._attributes.items()},
            self._images,
        )


def read(
    root: str | Path,
    *,
    rating_threshold: float | None = None,
    category_field: str | None = None,
    attribute_fields: Sequence[str] = (),
    text_fields: Sequence[str] | None = None,
    images_root: str | Path | None = None,
) -> tuple[AtomicItems, Histories, Report]:
    """Reads the data set in the folder `root`, whose files are called as the folder.

    Without a timestamp column the order of the file is the order in time. Without an `.item` file
    items are bare ids, as are items that only the interactions name (counted in the report).

    Args:
      rating_threshold: keep interactions rated so or higher; None keeps all.
      category_field, attribute_fields: columns of `.item` that become category and attributes.
      text_fields: columns that become text, in this order; None takes all the others.
      images_root: folder of the images; None means `root/images`, which may be absent.

    Raises:
      UserError: anything wrong with a file, naming file, line and what was expected.
    """
    root = Path(root).resolve()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of atomic files")
    report = Report(source=str(root))
    inter_path = find(root, "inter")
    if inter_path is None:
        raise UserError(f"{root}: neither {root.name}.inter nor {root.name}.inter.gz is here")
    inter = Table(inter_path, required=("user_id", "item_id"))
    item_path = find(root, "item")
    if item_path is None:
        ids, columns, ordered_text = [], {}, []
        named = [category_field, *attribute_fields, *(text_fields or ())]
        if any(named):
            raise UserError(f"{root}: no {root.name}.item to take the fields {named} from")
    else:
        table = Table(item_path, required=("item_id",))
        ids = table.unique_ids("item_id")
        special = {"item_id", category_field, *attribute_fields}
        if text_fields is None:
            ordered_text = [name for name in table.names if name not in special]
        else:
            ordered_text = list(text_fields)
        wanted = [*ordered_text, *attribute_fields, *([category_field] if category_field else [])]
        columns = {name: table.strings(name) for name in wanted}
    items, histories = _histories(inter, ids, report)
    bare = len(items) - len(ids)
    columns = {name: column + [""] * bare for name, column in columns.items()}
    if images_root is None:
        images = image_files(root / "images", within=root)
    else:
        images = image_files(Path(images_root), within=None)
    if images_root is not None and not images:
        raise UserError(f"{images_root}: no images <item_id>.jpg, .jpeg, .png or .webp here")
    report.note("image files of no item, unused", len(images.keys() - set(items)))
    catalog = AtomicItems(
        items,
        {name: columns[name] for name in ordered_text},
        columns[category_field] if category_field else None,
        {name: columns[name] for name in attribute_fields},
        images,
    )
    report.read = describe(histories, len(items))
    if rating_threshold is not None:
        kept = filters.at_least(histories, rating_threshold)
        histories = report.step(f"rated below {rating_threshold:g}", histories, kept)
    return catalog, histories, report


def _histories(inter: Table, ids: list[str], report: Report) -> tuple[list[str], Histories]:
    """All item ids (those of `.item` first) and the interactions in terms of them."""
    users, user_of_row = inter.codes("user_id")
    seen, seen_of_row = inter.codes("item_id")
    index = {id: i for i, id in enumerate(ids)}
    bare = [id for id in seen if id not in index]
    if ids:
        report.note("interacted items without a row in .item, kept as bare ids", len(bare))
    index |= {id: len(ids) + i for i, id in enumerate(bare)}
    items = np.array([index[id] for id in seen])[seen_of_row]
    has_times = "timestamp" in inter.names
    times = inter.floats("timestamp") if has_times else np.zeros(len(items))
    ratings = inter.floats("rating") if "rating" in inter.names else None
    histories = Histories.from_rows(users, user_of_row, items, times, ratings, clock=has_times)
    if not has_times:
        report.note("interactions without timestamp: file order is taken as time", len(items))
        positions = np.arange(len(items)) - np.repeat(histories.offsets[:-1], histories.lengths)
        histories = replace(histories, timestamps=positions)
    elif are_positions(histories):
        report.note("timestamps are positions in the history, not times", len(items))
        histories = replace(histories, clock=False)
    return ids + bare, histories


def find(root: Path, suffix: str) -> Path | None:
    """The file NAME.suffix or NAME.suffix.gz of the folder NAME; UserError when both are there."""
    names = (f"{root.name}.{suffix}", f"{root.name}.{suffix}.gz")
    found = [root / name for name in names if os.path.lexists(root / name)]
    if len(found) > 1:
        raise UserError(f"{root}: both {names[0]} and {names[1]} are here; remove one of them")
    return found[0] if found else None


def image_files(folder: Path, within: Path | None) -> dict[str, Path]:
    """item id -> file of a folder of <item_id>.jpg, .jpeg, .png or .webp, which may be absent;
    `within` as in `reading.open_regular`."""
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
