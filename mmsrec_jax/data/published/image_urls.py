"""Addresses of pictures, for whoever fetches them into DIR/images/<item_id>.jpg."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmsrec_jax.data.published import catalog, read
from mmsrec_jax.data.published.rows import Notes


def image_urls(name: str, root: str | Path) -> Iterator[tuple[str, str]]:
    """(item id, http or https address) of the items with interactions whose metadata has a picture.

    Args:
      name: a published data set, such as "amazon_reviews_2014/Beauty".
      root: folder of the publisher's files.

    Raises:
      UserError: there is no such data set, or anything is wrong with its files.
    """
    source = catalog.find(name)
    root = Path(root)
    notes: Notes = Counter()
    wanted: set[str] = set()
    for rows in read.interactions(source, root, notes):
        wanted.update(rows.items.dictionary.to_pylist())
    for item in read.described(source, root, wanted, notes):
        if item.image_url:
            yield item.id, item.image_url
