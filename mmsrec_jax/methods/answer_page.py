"""The page of `launch/recommend.py`: one answer with pictures."""

from collections import Counter
from collections.abc import Callable, Sequence

from mmsrec_jax.data.records import Catalog
from mmsrec_jax.methods.recommending import Answer, Ranked, Shown
from mmsrec_jax.pages.document import Section, document, note, stated
from mmsrec_jax.pages.markup import Content, Html, clipped, element, joined
from mmsrec_jax.pages.pictures import Pictures
from mmsrec_jax.pages.shown_items import marked, ranked_line, small, strip

_LONGEST_NAME, _LONGEST_TEXT, _LONGEST_LINE = 60, 400, 300
MARKS = note(
    "Marked words are shared with the history (× how often) or with the next items of similar "
    "users. Scores of this page compare with one another alone."
)


def page(answer: Answer, catalog: Catalog, command: str) -> str:
    """A whole page, which holds the pictures that it shows.

    catalog: of the items. command: what made the page.
    """
    pictures = Pictures(catalog)
    ranked = joined(MARKS, ranked_list(answer, answer.items, catalog, pictures))
    sections = [
        Section("recommended", "Recommended", ranked),
        Section("history", "History", history(answer, catalog, pictures)),
        *reasons(answer, catalog, pictures),
    ]
    who = "a typed history" if answer.user is None else clipped(answer.user, _LONGEST_NAME)
    head = element("p", f"Ranked by {answer.scorer}.", class_="lead")
    foot = element("code", clipped(command, _LONGEST_LINE))
    return document(f"Recommended for {who}", head, sections, foot=foot)


def reasons(answer: Answer, catalog: Catalog, pictures: Pictures) -> list[Section]:
    """What the answer rests on beside the history."""
    sections = []
    if answer.neighbors:
        labels = [small(f"similarity {item.similarity:.2f}") for item in answer.neighbors]
        shown = strip(_numbers(answer.neighbors, catalog), pictures, labels)
        sections.append(Section("similar", "What similar users took next", shown))
    if answer.told is not None:
        sections.append(Section("told", "What the model is told of the history", _told(answer)))
    return sections


def ranked_list(
    answer: Answer,
    items: Sequence[Ranked],
    catalog: Catalog,
    pictures: Pictures,
    after: Callable[[Ranked], Content] = lambda item: None,
) -> Html:
    """Some items of an answer, best first. after: what stands below an item."""
    before = Counter(word for item in answer.history for word in item.keywords)
    beside = {word for item in answer.neighbors for word in item.keywords}
    lines = []
    for item in items:
        said = [clipped(item.id, _LONGEST_NAME), f"score {item.score:.3f}"]
        if item.sequential_score is not None:
            said.append(f"sequential model {item.sequential_score:.3f}")
        new = element("span", "new item", class_="tag yes") if item.added else None
        lines.append(
            ranked_line(
                item.rank,
                catalog.index[item.id],
                pictures,
                marked(item.keywords, before, beside),
                said=", ".join(said),
                below=[new, after(item)],
            )
        )
    return element("ol", lines, class_="ranked") if lines else element("p", "No item is left.")


def history(answer: Answer, catalog: Catalog, pictures: Pictures) -> Html:
    """The items of the history that the model is shown."""
    labels = [small(", ".join(item.keywords)) for item in answer.history]
    return joined(
        note(f"The latest {len(answer.history)}, as many as a prompt shows, oldest first."),
        strip(_numbers(answer.history, catalog), pictures, labels),
    )


def _numbers(items: Sequence[Shown], catalog: Catalog) -> list[int]:
    return [catalog.index[item.id] for item in items]


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
