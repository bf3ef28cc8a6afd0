"""The page of `launch/recommend.py`: one answer with pictures."""

from collections import Counter
from collections.abc import Sequence

from mmsrec_jax.data.records import Catalog
from mmsrec_jax.methods.recommending import Answer, Ranked, Shown
from mmsrec_jax.pages.document import Section, document, note
from mmsrec_jax.pages.items import stated, tags, title_of
from mmsrec_jax.pages.markup import Content, Html, clipped, element, joined
from mmsrec_jax.pages.pictures import Pictures

_LONGEST_NAME, _LONGEST_TEXT, _LONGEST_LINE = 60, 400, 300


def page(answer: Answer, catalog: Catalog, command: str) -> str:
    """A whole page, which holds the pictures that it shows.

    catalog: of the items. command: what made the page.
    """
    pictures = Pictures(catalog)
    sections = [Section("recommended", "Recommended", _ranked(answer, catalog, pictures))]
    sections.append(Section("history", "History", _history(answer, catalog, pictures)))
    if answer.neighbors:
        labels = [f"similarity {item.similarity:.2f}" for item in answer.neighbors]
        shown = _strip(answer.neighbors, labels, catalog, pictures)
        sections.append(Section("similar", "What similar users took next", shown))
    if answer.told is not None:
        sections.append(Section("told", "What the model is told of the history", _told(answer)))
    who = "a typed history" if answer.user is None else clipped(answer.user, _LONGEST_NAME)
    head = element("p", f"Ranked by {answer.scorer}.", class_="lead")
    foot = element("code", clipped(command, _LONGEST_LINE))
    return document(f"Recommended for {who}", head, sections, foot=foot)


def _ranked(answer: Answer, catalog: Catalog, pictures: Pictures) -> Html:
    before = Counter(word for item in answer.history for word in item.keywords)
    beside = Counter(word for item in answer.neighbors for word in item.keywords)
    lines = [_line(item, before, beside, catalog, pictures) for item in answer.items]
    return joined(
        note(
            "Marked words are shared with the history (× how often) or with the next items of "
            "similar users. Scores of this page compare with one another alone."
        ),
        element("ol", lines, class_="ranked") if lines else element("p", "No item is left."),
    )


def _line(
    item: Ranked,
    before: Counter[str],
    beside: Counter[str],
    catalog: Catalog,
    pictures: Pictures,
) -> Html:
    number = catalog.index[item.id]
    shared = [word for word in item.keywords if before[word] or beside[word]]
    labels = [f"{word} × {before[word]}" if before[word] else word for word in shared]
    others = [word for word in item.keywords if word not in shared]
    said = [f"score {item.score:.3f}"]
    if item.sequential_score is not None:
        said.append(f"sequential model {item.sequential_score:.3f}")
    return element(
        "li",
        element("span", f"{item.rank:,}", class_="place"),
        pictures.picture(number),
        element(
            "div",
            element("div", title_of(pictures.item(number))),
            element("div", [*tags(labels, "shared"), *tags(others)]),
            element("div", clipped(item.id, _LONGEST_NAME), ", ", ", ".join(said), class_="id"),
            element("span", "new item", class_="tag yes") if item.added else None,
            class_="what",
        ),
    )


def _history(answer: Answer, catalog: Catalog, pictures: Pictures) -> Html:
    labels = [", ".join(item.keywords) for item in answer.history]
    return joined(
        note(f"The latest {len(answer.history)}, as many as a prompt shows, oldest first."),
        _strip(answer.history, labels, catalog, pictures),
    )


def _strip(
    items: Sequence[Shown], labels: Sequence[str], catalog: Catalog, pictures: Pictures
) -> Html:
    entries = []
    for item, label in zip(items, labels, strict=True):
        number = catalog.index[item.id]
        entries.append(
            element(
                "li",
                pictures.picture(number),
                element("span", title_of(pictures.item(number))),
                element("span", clipped(label, _LONGEST_NAME), class_="id"),
            )
        )
    return element("ul", entries, class_="strip", tabindex=0, aria_label="Items in a row")


def _told(answer: Answer) -> Html:
    told = answer.told
    assert told is not None
    windows = [element("li", clipped(text, _LONGEST_TEXT)) for text in told.preferences]
    parts: list[Content] = []
    if told.stated:
        parts += [element("h3", "What the user states"), stated(told.stated)]
    parts.append(element("h3", "Preferences, oldest window first"))
    parts.append(element("ol", windows) if windows else element("p", "No window has ended."))
    for title, text in (("Profile", told.profile), ("Chain of thought", told.chain)):
        if text:
            parts += [element("h3", title), element("p", clipped(text, _LONGEST_TEXT))]
    return joined(parts)
