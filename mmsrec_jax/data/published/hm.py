"""H&M Personalized Fashion Recommendations (Kaggle): purchases of clothes. One config, `all`."""

import re
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

from mmsrec_jax.data.published import csv_items, csv_rows, texts
from mmsrec_jax.data.published.files import File
from mmsrec_jax.data.published.rows import Ids, Layout, Notes
from mmsrec_jax.data.published.source import ItemRow, Source, Users
from mmsrec_jax.data.user_attributes import UserRow

PUBLISHER = "hm"
PAGE = "https://www.kaggle.com/competitions/h-and-m-personalized-fashion-recommendations/data"
CONFIGS = ("all",)

_ROWS = csv_rows.Columns(
    ("t_dat", "customer_id", "article_id", "price", "sales_channel_id"),
    "customer_id", "article_id", "t_dat", dates=True,
)  # fmt: skip
_ITEMS = Ids("^0[0-9]{9}$", "ten digits, the first of them 0")
_CUSTOMERS = Ids("^[0-9a-f]{64}$", "64 hexadecimal digits")
_LAYOUT = Layout(_CUSTOMERS, _ITEMS)
_FIELDS = {  # name of the text -> column
    "title": "prod_name", "description": "detail_desc", "product_type": "product_type_name",
    "product_group": "product_group_name", "color": "colour_group_name",
    "appearance": "graphical_appearance_name", "department": "department_name",
    "section": "section_name", "garment_group": "garment_group_name",
}  # fmt: skip


_STATED = ("age", "club_member_status", "fashion_news_frequency")
_WHOLE = re.compile(r"([0-9]+)\.0")  # an age that a table program wrote


def source(config: str) -> Source:
    """The data set."""
    return Source(
        PUBLISHER, config, PAGE, {"interactions": File(("transactions_train.csv",))},
        rows=partial(csv_rows.read, columns=_ROWS, layout=_LAYOUT),
        item_files=(File(("articles.csv",)),),
        described=_items,
        fields=tuple(_FIELDS),
        image_folders=_image_folders,
        users=Users(File(("customers.csv",)), _STATED, _customers),
    )  # fmt: skip


def _items(
    paths: Sequence[Path], wanted: Collection[str] | None, notes: Notes
) -> Iterator[ItemRow]:
    for where, row in csv_items.read(paths[0], ("article_id", *_FIELDS.values())):
        id = csv_items.checked_id(where, row["article_id"], _ITEMS)
        if wanted is None or id in wanted:
            found = {name: texts.plain(row[column]) for name, column in _FIELDS.items()}
            yield ItemRow(id, texts.given(**found))


def _customers(path: Path) -> Iterator[UserRow]:
    for where, row in csv_items.read(path, ("customer_id", *_STATED)):
        stated = texts.given(**{name: texts.plain(row[name]) for name in _STATED})
        if whole := _WHOLE.fullmatch(stated.get("age", "")):
            stated["age"] = whole[1]
        if stated.get("fashion_news_frequency") == "None":  # two spellings of one answer
            stated["fashion_news_frequency"] = "NONE"
        id = csv_items.checked_id(where, row["customer_id"], _CUSTOMERS, "user")
        yield UserRow(where, id, stated)


def _image_folders(root: Path) -> list[Path]:
    """images/<first three digits of article_id>/, as published, and images/ itself."""
    folder = root / "images"
    if not folder.is_dir():
        return []
    return [*sorted(path for path in folder.iterdir() if path.is_dir()), folder]
