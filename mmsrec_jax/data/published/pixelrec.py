"""PixelRec (Cheng et al.): covers of videos with Chinese titles. A config is a size.

Counters of the item files are not read: they are a later snapshot, which a model could learn from.
"""

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

from mmsrec_jax.data.published import csv_items, csv_rows, texts
from mmsrec_jax.data.published.files import File
from mmsrec_jax.data.published.rows import Ids, Layout, Notes
from mmsrec_jax.data.published.source import ItemRow, Source, first_folder

PUBLISHER = "pixelrec"
PAGE = "https://github.com/westlake-repl/PixelRec"
CONFIGS = ("50K", "200K", "1M", "8M", "all")

_ROWS = csv_rows.Columns(("item_id", "user_id", "timestamp"), "user_id", "item_id", "timestamp")
_ITEMS = Ids("^i[0-9]+$", "i and digits")
_LAYOUT = Layout(Ids("^u[0-9]+$", "u and digits"), _ITEMS)
_FIELDS = ("title", "tag", "description")


def source(config: str) -> Source:
    """The data set of one of `CONFIGS`."""
    name = "PixelRec.csv" if config == "all" else f"Pixel{config}.csv"
    # Both files have one name; the folders are those of HLLM.
    return Source(
        PUBLISHER, config, PAGE, {"interactions": File((name, f"dataset/{name}"))},
        rows=partial(csv_rows.read, columns=_ROWS, layout=_LAYOUT),
        item_files=(File((f"information/{name}",)),),
        described=_items,
        fields=_FIELDS,
        image_folders=first_folder("cover", "images"),
    )  # fmt: skip


def _items(
    paths: Sequence[Path], wanted: Collection[str] | None, notes: Notes
) -> Iterator[ItemRow]:
    for where, row in csv_items.read(paths[0], ("item_id", *_FIELDS)):
        id = csv_items.checked_id(where, row["item_id"], _ITEMS)
        if wanted is None or id in wanted:
            found = {name: texts.plain(row[name]) for name in _FIELDS}
            yield ItemRow(id, texts.given(**found))
