"""Data sets in the layout of MLLM-MSR (Ye et al.): NAME_u_i_pairs.tsv and NAME_item_desc.tsv.

Ids are the numbers of its maps. The name of the data set is free: `mllm_msr/Video_Games`.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

from mmsrec_jax.data.published import csv_items, csv_rows, texts
from mmsrec_jax.data.published.files import File
from mmsrec_jax.data.published.rows import Ids, Layout, Notes
from mmsrec_jax.data.published.source import ItemRow, Source

PUBLISHER = "mllm_msr"
PAGE = "https://github.com/YuyangYe/MLLM-MSR"
CONFIGS = re.compile(r"[A-Za-z0-9_-]+")

_IDS = Ids("^[0-9]+$", "a whole number")
_PAIRS = csv_rows.Columns(
    ("user_id", "item_id", "timestamp"), "user_id", "item_id", "timestamp", separator="\t"
)


def source(config: str) -> Source:
    """The data set of a name."""
    layout = Layout(_IDS, _IDS, milliseconds=True)
    return Source(
        PUBLISHER, config, PAGE, {"interactions": File((f"{config}_u_i_pairs.tsv",))},
        rows=partial(csv_rows.read, columns=_PAIRS, layout=layout),
        item_files=(File((f"{config}_item_desc.tsv",)),),
        described=_items,
        fields=("title",),
    )  # fmt: skip


def _items(
    paths: Sequence[Path], wanted: Collection[str] | None, notes: Notes
) -> Iterator[ItemRow]:
    """The column `summary` is the text of an item: its title, or more."""
    for where, row in csv_items.read(paths[0], ("item_id", "image", "summary"), separator="\t"):
        id = csv_items.checked_id(where, row["item_id"], _IDS)
        if wanted is None or id in wanted:
            text = texts.given(title=texts.plain(row["summary"]))
            url = row["image"] if row["image"].startswith("http") else ""
            yield ItemRow(id, text, url)
