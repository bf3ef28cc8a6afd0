"""The page of `launch/recommend.py`: one answer with pictures."""

from collections import Counter
from collections.abc import Sequence

from mmsrec_jax.data.records import Catalog
from mmsrec_jax.methods.recommending import Answer, Shown
from mmsrec_jax.pages.document import Section, document, note
from mmsrec_jax.pages.markup import Content, Html, clipped, element, joined
from mmsrec_jax.pages.pictures import Pictures
from mmsrec_jax.pages.shown_items import marked, ranked_line, small, strip

_LONGEST_NAME, _LONGEST_TEXT, _LONGEST_LINE = 60, 400, 300


def page(answer: Answer, catalog: Catalog, command: str) -> str:
    """A whole page, which holds the pictures that it shows.

    catalog: of the items. command: what made the page.
    """
    pictures = Pictures(catalog)
    sections = [Section("recommended", "Recommended", _ranked(answer, catalog, pictures))]
    sections.append(Section("history", "History", _history(answer, catalog, pictures)))
    if answer.neighbors:
        labels = [small(f"similarity {item.similarity:.2f}") for item in answer.neighbors]
        shown = strip(_numbers(answer.neighbors, catalog), pictures, labels)
        sections.append(Section("similar", "What similar users took next", shown))
    if answer.told is not None:
        sections.append(Section("told", "What the model is told of the history", _told(answer)))
    who = "a typed history" if answer.user is None else clipped(answer.user, _LONGEST_NAME)
    head = element("p", f"Ranked by {answer.scorer}.", class_="lead")
    foot = element("code", clipped(command, _LONGEST_LINE))
    return document(f"Recommended for {who}", head, sections, foot=foot)


def _ranked(answer: Answer, catalog: Catalog, pictures: Pictures) -> Html:
    before = Counter(word for item in answer.history for word in item.keywords)
    beside = {word for item in answer.neighbors for word in item.keywords}
    lines = []
    for item in answer.items:
        said = [clipped(item.id, _LONGEST_NAME), f"score {item.score:.3f}"]
        if item.sequential_score is not None:
            said.append(f"sequential model {item.sequential_score:.3f}")
        lines.append(
            ranked_line(
                item.rank,
                catalog.index[item.id],
                pictures,
                marked(item.keywords, before, beside),
                said=", ".join(said),
                below=element("span", "new item", class_="tag yes") if item.added else None,
            )
        )
    return joined(
        note(
            "Marked words are shared with the history (× how often) or with the next items of "
            "similar users. Scores of this page compare with one another alone."
        ),
        element("ol", lines, class_="ranked") if lines else element("p", "No item is left."),
    )


def _history(answer: Answer, catalog: Catalog, pictures: Pictures) -> Html:
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
    parts: list[Content] = [element("h3", "Preferences, oldest window first")]
    parts.append(element("ol", windows) if windows else element("p", "No window has ended."))
    for title, text in (("Profile", told.profile), ("Chain of thought", told.chain)):
        if text:
            parts += [element("h3", title), element("p", clipped(text, _LONGEST_TEXT))]
    return joined(parts)
