"""Items as all pages show them: in a row, and in a ranked list with the words that explain it."""

from collections.abc import Collection, Mapping, Sequence

from mmsrec_jax.data.records import Item
from mmsrec_jax.pages.markup import Content, Html, clipped, element
from mmsrec_jax.pages.pictures import Pictures

_LONGEST_TITLE, _LONGEST_WORD, _LONGEST_NAME = 90, 40, 60
_MOST_TAGS = 24


def title_of(item: Item) -> str:
    """The title of an item, or its id, of bounded length."""
    return clipped(item.title, _LONGEST_TITLE) or clipped(item.id, _LONGEST_TITLE)


def tags(words: Sequence[str], kind: str = "") -> list[Html]:
    """Words as labels, the first few."""
    css = f"tag {kind}".strip()
    found = [
        element("span", clipped(word, _LONGEST_WORD), class_=css) for word in words[:_MOST_TAGS]
    ]
    if len(words) > _MOST_TAGS:
        found.append(element("span", f"and {len(words) - _MOST_TAGS} more", class_="tag"))
    return found


def marked(
    words: Sequence[str], before: Mapping[str, int], beside: Collection[str] = ()
) -> list[Html]:
    """Words of an item as labels; first, and marked, those that others have too.

    before: word -> how many items of the history have it. beside: words of similar users' items.
    """
    shared = [word for word in words if before.get(word) or word in beside]
    labels = [f"{word} × {before[word]}" if before.get(word) else word for word in shared]
    return [*tags(labels, "shared"), *tags([word for word in words if word not in shared])]


def small(text: str) -> Html:
    """A short line below a title."""
    return element("span", clipped(text, _LONGEST_NAME), class_="id")


def strip(items: Sequence[int], pictures: Pictures, below: Sequence[Content] = ()) -> Html:
    """Items in a row that scrolls: picture, title, and what stands below each, or nothing."""
    entries = [
        element("li", pictures.picture(item), element("span", title_of(pictures.item(item))), more)
        for item, more in zip(items, below or [None] * len(items), strict=True)
    ]
    return element("ul", entries, class_="strip", tabindex=0, aria_label="Items in a row")


def bare_strip(items: Sequence[int], pictures: Pictures) -> Html:
    """Pictures alone, in lines."""
    return element("ul", [element("li", pictures.picture(i)) for i in items], class_="strip bare")


def ranked_line(
    rank: int,
    item: int,
    pictures: Pictures,
    words: Sequence[Html],
    *,
    mark: str = "",
    said: str = "",
    below: Content = None,
    kind: str | None = None,
) -> Html:
    """A line of a ranked list: place, picture, title, words, and what is said of it.

    mark: stands out beside the title. kind: class of the line.
    """
    return element(
        "li",
        element("span", f"{rank:,}", class_="place"),
        pictures.picture(item),
        element(
            "div",
            element(
                "div",
                title_of(pictures.item(item)),
                [" ", element("b", mark)] if mark else None,
            ),
            element("div", words),
            element("div", said, class_="id") if said else None,
            below,
            class_="what",
        ),
        class_=kind,
    )
