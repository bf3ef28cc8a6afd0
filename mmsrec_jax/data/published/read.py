"""A publisher's files as items and histories, as `atomic.read` gives those of atomic files."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mmsrec_jax.data import filters, user_attributes
from mmsrec_jax.data.column_items import ColumnItems, image_files
from mmsrec_jax.data.published.rows import Notes, Rows
from mmsrec_jax.data.published.source import ItemRow, Source, Users
from mmsrec_jax.data.records import Histories
from mmsrec_jax.data.report import Report, describe
from mmsrec_jax.data.user_attributes import Joined
from mmsrec_jax.runtime.errors import UserError

UNUSED_IMAGES = "image files of no item, unused"
_BARE = "; or set config.data.text_fields='()' for items without text"
_NO_USERS = "; or leave config.data.user_fields out"


class Fields(NamedTuple):
    """What is read of the items: fields that are text, the category, attributes."""

    texts: tuple[str, ...]
    category: str | None
    attributes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        source: Source,
        category: str | None,
        attributes: Sequence[str],
        texts: Sequence[str] | None,
    ) -> "Fields":
        """Those that are named; texts: None for all that have no other use. Raises UserError for
        one that the source does not have."""
        for name in (category, *attributes, *(texts or ())):
            if name is not None and name not in source.fields:
                raise UserError(
                    f"{source.name} has no field {name}; it has {', '.join(source.fields)}"
                )
        if texts is None:
            texts = [name for name in source.fields if name not in {category, *attributes}]
        return cls(tuple(texts), category, tuple(attributes))

    @property
    def all(self) -> list[str]:
        """Each once: a field may have two uses."""
        named = [*self.texts, *self.attributes, *([self.category] if self.category else [])]
        return list(dict.fromkeys(named))


def check(source: Source, root: Path, *, with_items: bool, user_fields: Sequence[str] = ()) -> None:
    """Stops early when a file of the source is not below `root`.

    with_items: whether the files that describe items are read too. user_fields: what is asked for
      of users.

    Raises:
      UserError: a file is missing; names it, the page that has it and its checksum. Or the
        publisher does not state such a field.
    """
    archive = source.archive
    if archive is not None and all(file.locate(root) is None for file in source.files):
        path = archive.required(root, source.page, f", and unpack it in {root}")
        raise UserError(f"{path}: unpack it where it is")
    for file in source.interactions.values():
        file.required(root, source.page)
    for file in source.item_files if with_items else ():
        file.required(root, source.page, _BARE)
    if user_fields:
        _users_of(source, user_fields).file.required(root, source.page, _NO_USERS)


def read(
    source: Source,
    root: str | Path,
    *,
    rating_threshold: float | None = None,
    category_field: str | None = None,
    attribute_fields: Sequence[str] = (),
    text_fields: Sequence[str] | None = None,
    images_root: str | Path | None = None,
) -> tuple[ColumnItems, Histories, Report]:
    """Reads a published data set out of the folder `root`; arguments as of `atomic.read`.

    Items are those with an interaction: first those that the publisher describes, in the order of
    its file, then bare ids. With no field asked for, the files that describe items are not read.
    Of a benchmark with splits all interactions are read.

    Raises:
      UserError: a file is missing, not the published one, or something in it is wrong.
    """
    root = Path(root).resolve()
    report = Report(source=f"{source.name} in {root}")
    fields = Fields.of(source, category_field, attribute_fields, text_fields)
    check(source, root, with_items=bool(fields.all))
    notes: Notes = Counter()
    users, user_of_row, seen, seen_of_row, times, ratings = _collected(
        interactions(source, root, notes), source, root
    )
    images = images_of(source, root, images_root)
    notes[UNUSED_IMAGES] += unused(images, seen)
    catalog = items_of(source, root, seen, fields, images, notes)
    index = {id: i for i, id in enumerate(catalog.ids)}
    items = np.array([index[id] for id in seen], np.int32)[seen_of_row]
    del seen_of_row
    if times is None:
        notes["interactions without timestamp: file order is taken as time"] += len(items)
    seconds = np.zeros(len(items)) if times is None else times / 1000
    histories = Histories.from_rows(users, user_of_row, items, seconds, ratings)
    if times is None:
        histories = histories.by_position()
    for what, count in notes.items():
        report.note(what, count)
    report.read = describe(histories, len(index))
    if rating_threshold is not None:
        kept = filters.at_least(histories, rating_threshold)
        histories = report.step(filters.rated_below(rating_threshold), histories, kept)
    return catalog, histories, report


def items_of(
    source: Source,
    root: Path,
    seen: list[str],
    fields: Fields,
    images: Mapping[str, Path],
    notes: Notes,
) -> ColumnItems:
    """The items `seen`: first those that the publisher describes, in the order of its file, then
    bare ids, in theirs. images: item id -> file."""
    ids, columns = _described(source, root, seen if fields.all else [], fields.all, notes)
    known = set(ids)
    bare = [id for id in seen if id not in known]
    if fields.all:
        notes["interacted items that the publisher does not describe, kept as bare ids"] += len(
            bare
        )
    ids += bare
    columns = {name: column + [""] * len(bare) for name, column in columns.items()}
    return ColumnItems(
        ids,
        {name: columns[name] for name in fields.texts},
        columns[fields.category] if fields.category else None,
        {name: columns[name] for name in fields.attributes},
        dict(images),
    )


def unused(images: Mapping[str, Path], seen: Iterable[str]) -> int:
    """How many images are of none of the items `seen`, which are named once each."""
    return len(images) - sum(id in images for id in seen)


def read_users(source: Source, root: Path, fields: Sequence[str], users: np.ndarray) -> Joined:
    """What users str[U] state of themselves: these fields.

    Raises:
      UserError: as `check` and `user_attributes.join`; or something in the file is wrong.
    """
    found = _users_of(source, fields)
    path = found.file.required(root, source.page, _NO_USERS)
    return user_attributes.join(found.rows(path), users, fields, path.name)


def _users_of(source: Source, fields: Sequence[str]) -> Users:
    found = source.users
    for name in fields:
        if found is None or name not in found.fields:
            there = "nothing" if found is None else ", ".join(found.fields)
            raise UserError(
                f"config.data.user_fields: {source.name} does not state {name!r} of users; it "
                f"states {there}"
            )
    assert found is not None, "there are fields"
    return found


def interactions(source: Source, root: Path, notes: Notes) -> Iterable[Rows]:
    """The rows of all files of interactions in `root`. Raises UserError as `read`."""
    for path in interaction_files(source, root):
        yield from source.rows(path, notes=notes)


def interaction_files(source: Source, root: Path) -> Iterator[Path]:
    """The files of interactions in `root`, each checked. Raises UserError as `read`."""
    for file in source.interactions.values():
        path = file.required(root, source.page)
        file.check_digest(path, source.page)
        yield path


def without_interactions(source: Source, root: Path) -> UserError:
    """What is wrong with files in `root` that hold none."""
    where = ", ".join(str(file.locate(root)) for file in source.interactions.values())
    return UserError(f"{where}: no interactions; download or copy it again")


def _collected(
    parts: Iterable[Rows], source: Source, root: Path
) -> tuple[list[str], np.ndarray, list[str], np.ndarray, np.ndarray | None, np.ndarray | None]:
    """User ids, int32[T] indices into them, the same of items, times and ratings."""
    users, items, times, ratings = [], [], [], []
    for part in parts:
        users.append(part.users)
        items.append(part.items)
        times.append(part.times)
        ratings.append(part.ratings)
    if not sum(map(len, users)):
        raise without_interactions(source, root)
    return (*_codes(users), *_codes(items), _joined(times), _joined(ratings))


def _codes(parts: list[pa.DictionaryArray]) -> tuple[list[str], np.ndarray]:
    """The distinct ids in order of appearance, and int32[T] indices into them."""
    unified = pa.chunked_array(parts).unify_dictionaries()
    codes = np.concatenate([part.indices.to_numpy() for part in unified.chunks])
    return unified.chunk(unified.num_chunks - 1).dictionary.to_pylist(), codes


def _joined(parts: list[np.ndarray | None]) -> np.ndarray | None:
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if len(known) == len(parts) else None


def _described(
    source: Source, root: Path, seen: list[str], wanted: list[str], notes: Notes
) -> tuple[list[str], dict[str, list[str]]]:
    """Ids and columns of those of the items `seen` that the publisher describes."""
    ids: list[str] = []
    columns: dict[str, list[str]] = {name: [] for name in wanted}
    if not wanted:
        return ids, columns
    for item in described(source, root, set(seen), notes):
        ids.append(item.id)
        for name in wanted:
            columns[name].append(item.text.get(name, ""))
    return ids, columns


def described(
    source: Source, root: Path, wanted: Collection[str], notes: Notes
) -> Iterator[ItemRow]:
    """Those of the wanted items that the files in `root` describe. Raises UserError as `read`."""
    paths = [file.required(root, source.page) for file in source.item_files]
    for file, path in zip(source.item_files, paths, strict=True):
        file.check_digest(path, source.page)
    return source.items(paths, wanted, notes)


def images_of(source: Source, root: Path, images_root: str | Path | None) -> dict[str, Path]:
    """Item id -> image file, in `images_root` or where the publisher has them. Raises UserError for
    a folder without images."""
    if images_root is None:
        return source.images(root)
    images = image_files(Path(images_root), within=None)
    if not images:
        raise UserError(f"{images_root}: no images <item_id>.jpg, .jpeg, .png or .webp here")
    return images
