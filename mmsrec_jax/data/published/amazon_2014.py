"""Amazon reviews of 2014 (McAuley et al.): reviews as JSON, ratings as CSV, metadata as literals.

A config is a category and a form: `Beauty` has the 5-core, `Beauty-raw` all reviews and
`Beauty-ratings` the CSV of all ratings.
"""

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from mmsrec_jax.data.published import amazon, csv_rows, json_rows, texts
from mmsrec_jax.data.published.files import File
from mmsrec_jax.data.published.rows import Notes
from mmsrec_jax.data.published.source import ItemRow, Source

PUBLISHER = "amazon_reviews_2014"
PAGE = "https://snap.stanford.edu/data/amazon/productGraph/"
CATEGORIES = (
    "Books", "Electronics", "Movies_and_TV", "CDs_and_Vinyl", "Clothing_Shoes_and_Jewelry",
    "Home_and_Kitchen", "Kindle_Store", "Sports_and_Outdoors", "Cell_Phones_and_Accessories",
    "Health_and_Personal_Care", "Toys_and_Games", "Video_Games", "Tools_and_Home_Improvement",
    "Beauty", "Apps_for_Android", "Office_Products", "Pet_Supplies", "Automotive",
    "Grocery_and_Gourmet_Food", "Patio_Lawn_and_Garden", "Baby", "Digital_Music",
    "Musical_Instruments", "Amazon_Instant_Video",
)  # fmt: skip
FORMS = ("", "-raw", "-ratings")
CONFIGS = tuple(f"{category}{form}" for category in CATEGORIES for form in FORMS)

_FILES = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"
_RATINGS = csv_rows.Columns(
    ("user", "item", "rating", "timestamp"), "user", "item", "timestamp", "rating", header=False
)
_REVIEWS = json_rows.Fields("reviewerID", "asin", "overall", ("unixReviewTime",))
_DIGESTS = {"ratings_CDs_and_Vinyl.csv": "md5:67404932efce35be194f3f1088db3971"}
_NO_IMAGE = "no-img-sm"


def source(config: str) -> Source:
    """The data set of one of `CONFIGS`."""
    category, _, form = config.partition("-")
    if form == "ratings":
        name = f"ratings_{category}.csv"
        file = File((name,), url=_FILES + name, digest=_DIGESTS.get(name, ""))
        rows = partial(csv_rows.read, columns=_RATINGS, layout=amazon.IN_SECONDS)
    else:
        name = f"reviews_{category}{'' if form else '_5'}.json"
        file = File((name,), url=f"{_FILES}{name}.gz")
        rows = partial(json_rows.read, fields=_REVIEWS, layout=amazon.IN_SECONDS)
    meta = f"meta_{category}.json"
    return Source(
        PUBLISHER, config, PAGE, {"interactions": file},
        rows=rows,
        item_files=(File((meta,), url=f"{_FILES}{meta}.gz"),),
        described=_items,
        fields=("title", "description", "brand", "categories", "price"),
    )  # fmt: skip


def _items(
    paths: Sequence[Path], wanted: Collection[str] | None, notes: Notes
) -> Iterator[ItemRow]:
    yield from amazon.items(paths[0], "asin", texts.literal, _item, wanted)


def _item(value: dict[str, Any]) -> ItemRow:
    paths = value.get("categories")
    path_lists = [path for path in paths if isinstance(path, list)] if _is_list(paths) else []
    text = texts.given(
        title=texts.plain(value.get("title")),
        description=texts.plain(value.get("description")),
        brand=texts.plain(value.get("brand")),
        categories=texts.joined(name for path in path_lists for name in path),
        price=texts.amount(value.get("price")),
    )
    return ItemRow(value["asin"], text, _image_url(value.get("imUrl")))


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _image_url(url: Any) -> str:
    """Empty for none, and for the picture that says that there is none."""
    is_image = isinstance(url, str) and url.startswith("http") and _NO_IMAGE not in url
    return url if is_image else ""
