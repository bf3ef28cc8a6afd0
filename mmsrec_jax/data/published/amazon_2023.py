"""Amazon reviews of 2023 (Hou et al.): reviews and metadata as JSON lines, benchmark splits as CSV.

A config is a category and a form. `Video_Games` has the ratings of the benchmark's 5-core,
`Video_Games-0core` all its ratings, `Video_Games-raw` the reviews as collected. Items are
`parent_asin`s, which all metadata is about. Splits as published: `Video_Games-5core-last_out`,
`-5core-timestamp`, `-0core-last_out` and `-0core-timestamp`, and the same with `_w_his`.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmsrec_jax.data.published import amazon, csv_rows, json_rows, texts
from mmsrec_jax.data.published.files import File
from mmsrec_jax.data.published.rows import Notes
from mmsrec_jax.data.published.source import ItemRow, Source
from mmsrec_jax.runtime import reading

PUBLISHER = "amazon_reviews_2023"
PAGE = "https://huggingface.co/datasets/McAuley-Lab/Amazon-Reviews-2023"
CATEGORIES = (
    "All_Beauty", "Amazon_Fashion", "Appliances", "Arts_Crafts_and_Sewing", "Automotive",
    "Baby_Products", "Beauty_and_Personal_Care", "Books", "CDs_and_Vinyl",
    "Cell_Phones_and_Accessories", "Clothing_Shoes_and_Jewelry", "Digital_Music", "Electronics",
    "Gift_Cards", "Grocery_and_Gourmet_Food", "Handmade_Products", "Health_and_Household",
    "Health_and_Personal_Care", "Home_and_Kitchen", "Industrial_and_Scientific", "Kindle_Store",
    "Magazine_Subscriptions", "Movies_and_TV", "Musical_Instruments", "Office_Products",
    "Patio_Lawn_and_Garden", "Pet_Supplies", "Software", "Sports_and_Outdoors",
    "Subscription_Boxes", "Tools_and_Home_Improvement", "Toys_and_Games", "Video_Games", "Unknown",
)  # fmt: skip
SPLITS = ("last_out", "timestamp", "last_out_w_his", "timestamp_w_his")
FORMS = (
    "", "-0core", "-raw", *(f"-{core}-{split}" for core in ("5core", "0core") for split in SPLITS),
)  # fmt: skip
CONFIGS = tuple(f"{category}{form}" for category in CATEGORIES for form in FORMS)

_FILES = f"{PAGE}/resolve/main/"
_REVIEWS = json_rows.Fields(
    "user_id", "parent_asin", "rating", ("timestamp", "sort_timestamp", "sortTimestamp")
)
_RATINGS = csv_rows.Columns(
    ("user_id", "parent_asin", "rating", "timestamp"),
    "user_id", "parent_asin", "timestamp", "rating",
)  # fmt: skip
_GZ_DIGESTS = {  # of 0core/rating_only/<category>.csv.gz
    "Baby_Products": "md5:644025598b2e4eb6dc69b55a7f23c8ae",
    "Beauty_and_Personal_Care": "md5:6b9dfce7fca70dd05e1bcf77c1953c40",
    "Toys_and_Games": "md5:542250672811854e9803d90b1f52cc14",
    "Sports_and_Outdoors": "md5:75e1dfbb3b3014fab914832b734922e6",
    "Video_Games": "md5:60fdc3e812de871c30d65722e9a91a0a",
}
_PRICE = re.compile(r"^(from )?\$?[0-9][0-9.,]*$")


def source(config: str) -> Source:
    """The data set of one of `CONFIGS`."""
    category, _, form = config.partition("-")
    core, _, split = form.partition("-")
    rows = partial(csv_rows.read, columns=_RATINGS, layout=amazon.IN_MILLISECONDS)
    if form == "raw":
        path = f"raw/review_categories/{category}.jsonl"
        files = {"interactions": File((path, f"{category}.jsonl"), _FILES + path)}
        rows = partial(json_rows.read, fields=_REVIEWS, layout=amazon.IN_MILLISECONDS)
    elif split:
        parts = ("train", "valid", "test")
        files = {part: _benchmark(f"{core}/{split}/{category}.{part}.csv") for part in parts}
        if split.endswith("_w_his"):
            columns = csv_rows.with_history(_RATINGS)
            rows = partial(csv_rows.read, columns=columns, layout=amazon.IN_MILLISECONDS)
    else:
        digest = _GZ_DIGESTS.get(category, "") if core else ""
        name = f"{core or '5core'}/rating_only/{category}.csv"
        files = {"interactions": _benchmark(name, digest)}
    meta = f"raw/meta_categories/meta_{category}.jsonl"
    return Source(
        PUBLISHER, config, PAGE, files,
        rows=rows,
        item_files=(File((meta, f"meta_{category}.jsonl"), _FILES + meta),),
        described=_items,
        fields=("title", "description", "features", "store", "categories", "price"),
    )  # fmt: skip


def _benchmark(name: str, gz_digest: str = "") -> File:
    """Cores and splits have equal file names: the folders are part of them."""
    return File((name, f"benchmark/{name}"), f"{_FILES}benchmark/{name}", gz_digest=gz_digest)


def _items(
    paths: Sequence[Path], wanted: Collection[str] | None, notes: Notes
) -> Iterator[ItemRow]:
    parse = reading.parse_json
    yield from amazon.items(paths[0], "parent_asin", parse, _item, wanted)


def _item(value: dict[str, Any]) -> ItemRow:
    categories = value.get("categories")
    text = texts.given(
        title=texts.plain(value.get("title")),
        description=texts.plain(value.get("description")),
        features=texts.plain(value.get("features")),
        store="" if value.get("store") == "None" else texts.plain(value.get("store")),
        categories=texts.joined(categories if isinstance(categories, list) else []),
        price=_price(value.get("price")),
    )
    return ItemRow(value["parent_asin"], text, _image_url(value.get("images")))


def _price(price: Any) -> str:
    """A number, or text such as "from 9.99"; "None" and dashes are no price."""
    return price if isinstance(price, str) and _PRICE.match(price) else texts.amount(price)


def _image_url(images: Any) -> str:
    """Of the main picture, else of the first: the largest that there is.

    Pictures are a list of dicts, or in the copies of Hugging Face a dict of lists.
    """
    if isinstance(images, dict):
        columns = {name: column for name, column in images.items() if isinstance(column, list)}
        count = max(map(len, columns.values()), default=0)
        images = [
            {name: column[i] for name, column in columns.items() if i < len(column)}
            for i in range(count)
        ]
    listed = images if isinstance(images, list) else []
    pictures = [picture for picture in listed if isinstance(picture, dict)]
    pictures.sort(key=lambda picture: picture.get("variant") != "MAIN")
    for picture in pictures:
        for size in ("hi_res", "large", "thumb"):
            url = picture.get(size)
            if isinstance(url, str) and url.startswith("http"):
                return url
    return ""
