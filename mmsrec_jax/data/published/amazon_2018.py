"""Amazon reviews of 2018 (Ni et al.): reviews as JSON, ratings as CSV with the item first, metadata
as JSON or, in older copies, as dict literals.

A config is a category and a form, as in `amazon_2014`.
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

PUBLISHER = "amazon_reviews_2018"
PAGE = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2/"
CATEGORIES = (
    "AMAZON_FASHION", "All_Beauty", "Appliances", "Arts_Crafts_and_Sewing", "Automotive", "Books",
    "CDs_and_Vinyl", "Cell_Phones_and_Accessories", "Clothing_Shoes_and_Jewelry", "Digital_Music",
    "Electronics", "Gift_Cards", "Grocery_and_Gourmet_Food", "Home_and_Kitchen",
    "Industrial_and_Scientific", "Kindle_Store", "Luxury_Beauty", "Magazine_Subscriptions",
    "Movies_and_TV", "Musical_Instruments", "Office_Products", "Patio_Lawn_and_Garden",
    "Pet_Supplies", "Prime_Pantry", "Software", "Sports_and_Outdoors",
    "Tools_and_Home_Improvement", "Toys_and_Games", "Video_Games",
)  # fmt: skip
FORMS = ("", "-raw", "-ratings")
CONFIGS = tuple(f"{category}{form}" for category in CATEGORIES for form in FORMS)

# The item comes first, other than in 2014.
_RATINGS = csv_rows.Columns(
    ("item", "user", "rating", "timestamp"), "user", "item", "timestamp", "rating", header=False
)
_REVIEWS = json_rows.Fields("reviewerID", "asin", "overall", ("unixReviewTime",))
_DIGESTS = {"Sports_and_Outdoors.csv": "md5:1ed3d6c7a89f3c78fa260b2419753785"}
_PRICE = re.compile(r"^\$[0-9][0-9.,]*( - \$[0-9][0-9.,]*)?$")
_SCRIPT = ("<span id=", "getTime(")


def source(config: str) -> Source:
    """The data set of one of `CONFIGS`."""
    category, _, form = config.partition("-")
    if form == "ratings":
        name = f"{category}.csv"
        url = f"{PAGE}categoryFilesSmall/{name}"
        file = File((name, f"categoryFilesSmall/{name}"), url, digest=_DIGESTS.get(name, ""))
        rows = partial(csv_rows.read, columns=_RATINGS, layout=amazon.IN_SECONDS)
    else:
        folder = "categoryFiles" if form else "categoryFilesSmall"
        name = f"{category}{'' if form else '_5'}.json"
        file = File((name, f"{folder}/{name}"), f"{PAGE}{folder}/{name}.gz")
        rows = partial(json_rows.read, fields=_REVIEWS, layout=amazon.IN_SECONDS)
    meta = f"meta_{category}.json"
    return Source(
        PUBLISHER, config, PAGE, {"interactions": file},
        rows=rows,
        item_files=(File((meta, f"metaFiles2/{meta}"), f"{PAGE}metaFiles2/{meta}.gz"),),
        described=_items,
        fields=("title", "description", "features", "brand", "categories", "price"),
    )  # fmt: skip


def _items(
    paths: Sequence[Path], wanted: Collection[str] | None, notes: Notes
) -> Iterator[ItemRow]:
    yield from amazon.items(paths[0], "asin", texts.json_or_literal, _item, wanted)


def _item(value: dict[str, Any]) -> ItemRow:
    title, price = value.get("title"), value.get("price")
    if isinstance(title, str) and any(mark in title for mark in _SCRIPT):
        title = ""
    categories = value.get("category")
    text = texts.given(
        title=texts.plain(title),
        description=texts.plain(value.get("description")),
        features=texts.plain(value.get("feature")),
        brand=texts.plain(value.get("brand")).removeprefix("by ").strip(),
        categories=texts.joined(categories if isinstance(categories, list) else []),
        price=price if isinstance(price, str) and _PRICE.match(price) else "",
    )
    return ItemRow(value["asin"], text, _image_url(value))


def _image_url(value: dict[str, Any]) -> str:
    """The first picture, large when there is a large one; older copies call the field `image`."""
    for name in ("imageURLHighRes", "imageURL", "image"):
        urls = value.get(name)
        for url in urls if isinstance(urls, list) else []:
            if isinstance(url, str) and url.startswith("http"):
                return url
    return ""
