"""RecBole atomic files: `<name>.inter[.gz]`, `<name>.item[.gz]`, `<name>.user[.gz]` and
`images/<item_id>.<suffix>`.

Tab-separated UTF-8 with a header of `name:type`, type one of token, token_seq, float, float_seq.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mmsrec_jax.data import filters, user_attributes
from mmsrec_jax.data.atomic_table import Table
from mmsrec_jax.data.column_items import ColumnItems, image_files
from mmsrec_jax.data.records import Histories, are_positions
from mmsrec_jax.data.report import Report, describe
from mmsrec_jax.data.user_attributes import Joined, UserRow
from mmsrec_jax.runtime.errors import UserError


def read(
    root: str | Path,
    *,
    rating_threshold: float | None = None,
    category_field: str | None = None,
    attribute_fields: Sequence[str] = (),
    text_fields: Sequence[str] | None = None,
    images_root: str | Path | None = None,
) -> tuple[ColumnItems, Histories, Report]:
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
    catalog = ColumnItems(
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
        histories = histories.by_position()
    elif are_positions(histories):
        report.note("timestamps are positions in the history, not times", len(items))
        histories = replace(histories, clock=False)
    return ids + bare, histories


def read_users(root: Path, fields: Sequence[str], users: np.ndarray) -> Joined:
    """What users str[U] state of themselves: these columns of `<name>.user[.gz]`.

    Raises:
      UserError: there is no such file or column, something in the file is wrong, or as
        `user_attributes.join`.
    """
    path = user_file(root)
    if "user_id" in fields:
        raise UserError("config.data.user_fields: an id says nothing of a user; leave user_id out")
    table = Table(path, required=("user_id", *fields))
    ids = table.unique_ids("user_id")
    columns = [table.strings(name) for name in fields]
    rows = (
        UserRow(path.name, id, dict(zip(fields, map(str.strip, cells), strict=True)))
        for id, *cells in zip(ids, *columns, strict=True)
    )
    return user_attributes.join(rows, users, fields, path.name)


def user_file(root: Path) -> Path:
    """`<name>.user[.gz]` of the folder `root`. Raises UserError when there is none."""
    root = root.resolve()
    path = find(root, "user")
    if path is None:
        raise UserError(
            f"{root}: neither {root.name}.user nor {root.name}.user.gz is here, to take "
            "config.data.user_fields from; leave these out"
        )
    return path


def find(root: Path, suffix: str) -> Path | None:
    """The file NAME.suffix or NAME.suffix.gz of the folder NAME; UserError when both are there."""
    names = (f"{root.name}.{suffix}", f"{root.name}.{suffix}.gz")
    found = [root / name for name in names if os.path.lexists(root / name)]
    if len(found) > 1:
        raise UserError(f"{root}: both {names[0]} and {names[1]} are here; remove one of them")
    return found[0] if found else None
