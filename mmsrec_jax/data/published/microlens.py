"""MicroLens (Ni et al.): short videos with titles and covers. Configs: `50k`, `100k`.

Likes and views are not read: they are one later snapshot, which a model could learn from.
"""

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

from mmsrec_jax.data.published import csv_items, csv_rows, texts
from mmsrec_jax.data.published.files import File, lines
from mmsrec_jax.data.published.rows import Ids, Layout, Notes
from mmsrec_jax.data.published.source import ItemReader, ItemRow, Source, first_folder
from mmsrec_jax.runtime.errors import UserError

PUBLISHER = "microlens"
PAGE = "https://github.com/westlake-repl/MicroLens"
CONFIGS = ("50k", "100k")

_PAIRS = csv_rows.Columns(("user", "item", "timestamp"), "user", "item", "timestamp")
_ITEMS = Ids("^[1-9][0-9]*$", "a whole number", largest=19_738)
_DIGESTS = {
    "MicroLens-50k_pairs.csv":
        "sha256:7ff8b91bcc84f5434ac2c5be7d0b7d7730f5e84f79f9648b5ae67a7641f97bbd",
    "MicroLens-50k_titles.csv":
        "sha256:244aad5380cbbe0fb43458cfcda5ebe820f534384602f80a64dbbcd07dd30e49",
}  # fmt: skip


def source(config: str) -> Source:
    """The data set of one of `CONFIGS`."""
    users = Ids("^[1-9][0-9]*$", "a whole number", largest=int(config.removesuffix("k")) * 1000)
    layout = Layout(users, _ITEMS, milliseconds=True)
    name = f"MicroLens-{config}"
    titles = f"{name}_titles.csv" if config == "50k" else f"{name}_title_en.csv"
    items: ItemReader = _titles if config == "50k" else _bare_titles
    return Source(
        PUBLISHER, config, PAGE, {"interactions": _file(f"{name}_pairs.csv")},
        rows=partial(csv_rows.read, columns=_PAIRS, layout=layout),
        item_files=(_file(titles),),
        described=items,
        fields=("title",),
        image_folders=first_folder(f"{name}_covers", "images"),
    )  # fmt: skip


def _file(name: str) -> File:
    return File((name,), digest=_DIGESTS.get(name, ""))


def _titles(
    paths: Sequence[Path], wanted: Collection[str] | None, notes: Notes
) -> Iterator[ItemRow]:
    """With a header `item,title` and quotes."""
    for where, row in csv_items.read(paths[0], ("item", "title")):
        id = csv_items.checked_id(where, row["item"], _ITEMS)
        if wanted is None or id in wanted:
            yield _item(id, row["title"])


def _bare_titles(
    paths: Sequence[Path], wanted: Collection[str] | None, notes: Notes
) -> Iterator[ItemRow]:
    """Without header and quotes: the first comma ends the id, the others are the title's."""
    for number, line in lines(paths[0]):
        where = f"{paths[0]}:{number}"
        id, comma, title = line.partition(",")
        if not comma:
            raise UserError(f"{where}: no comma after the item; the file has lines of item,title")
        csv_items.checked_id(where, id, _ITEMS)
        if wanted is None or id in wanted:
            yield _item(id, title)


def _item(id: str, title: str) -> ItemRow:
    return ItemRow(id, texts.given(title=texts.plain(title)))
