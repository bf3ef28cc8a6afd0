"""The frame of every page: head, style, headline, links to the sections, sections."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from absl import logging

from mmsrec_jax.pages.markup import Content, Html, clipped, element, joined
from mmsrec_jax.runtime import files
from mmsrec_jax.runtime.errors import first_line

# No script, no network: what a page shows is in the page. A title of an item that became markup by
# a mistake of ours could still load and run nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
FORM_POLICY = _POLICY + "form-action 'self'"  # of a page with forms, which a server answers


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading of its own; `name` is its address within the page."""

    name: str
    title: str
    body: Html


def document(
    title: str,
    head: Content,
    sections: Sequence[Section],
    foot: Content = None,
    *,
    has_forms: bool = False,
) -> str:
    """A whole page.

    Args:
      title: of the browser's window and of the page.
      head: what stands below the title.
      sections: in their order; the page begins with links to them.
      foot: the last lines.
      has_forms: it may send them to the server that it is from, and to no other.
    """
    policy = FORM_POLICY if has_forms else _POLICY + "form-action 'none'"
    # A form of a page without a referrer does not say either which server it is from.
    referrer = "same-origin" if has_forms else "no-referrer"
    links = [
        element("li", element("a", section.title, href=f"#{section.name}")) for section in sections
    ]
    body = [
        element("a", "Skip to the content", href="#content", class_="skip"),
        element("header", element("h1", title), head),
        element("nav", element("ul", links), aria_label="Sections") if links else None,
        element("main", map(_section, sections), id="content"),
        element("footer", foot) if foot else None,
    ]
    named = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content=referrer),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", _style()),
    ]
    page = element("html", element("head", named), element("body", body), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def write(path: Path, page: str) -> None:
    """Writes a page atomically; of several processes the main one writes."""
    files.write_text(path, page)


def attempt(make: Callable[[], object]) -> None:
    """Makes a page; a failure is one line of warning: a run does not end for its page."""
    try:
        make()
    except Exception as error:
        logging.warning("no page of this run: %s", first_line(error))


def table(
    caption: str,
    head: Sequence[Content],
    rows: Sequence[Sequence[Content]],
    *,
    text_columns: int = 1,
    marked: Collection[int] = (),
) -> Html:
    """A table that scrolls sideways within itself where the screen is narrow.

    caption: shown above it and read by screen readers. text_columns: how many of the first columns
    are text, the first one naming the row; the others are numbers, flush right. marked: numbers of
    the rows that stand out.
    """

    def cell(column: int, value: Content) -> Html:
        kind = None if column < text_columns else "number"
        if column == 0:
            return element("th", value, scope="row")
        return element("td", value, class_=kind)

    titles = [
        element("th", title, scope="col", class_=None if i < text_columns else "number")
        for i, title in enumerate(head)
    ]
    lines = [
        element(
            "tr",
            [cell(i, value) for i, value in enumerate(row)],
            class_="own" if number in marked else None,
        )
        for number, row in enumerate(rows)
    ]
    whole = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", element("tr", titles)),
        element("tbody", lines),
    )
    return element("div", whole, class_="scroll", role="region", tabindex=0, aria_label=caption)


def facts(pairs: Sequence[tuple[str, Content]]) -> Html:
    """Short facts: a name and its value, side by side."""
    return element(
        "dl",
        [element("div", element("dt", name), element("dd", value)) for name, value in pairs],
        class_="facts",
    )


def stated(attributes: Mapping[str, str]) -> Html:
    """What a user states of themselves, on one line."""
    told = (f"{clipped(name, 40)}: {clipped(value, 80)}" for name, value in attributes.items())
    return element("p", "; ".join(told))


def folded(summary: Content, *content: Content) -> Html:
    """What is shown when its summary is clicked."""
    return element("details", element("summary", summary), content)


def bar(share: float) -> Html:
    """A bar of a share from 0 to 1, for the eye alone."""
    inside = element("span", style=f"width:{min(max(share, 0.0), 1.0):.1%}")
    return element("span", inside, class_="bar", aria_hidden="true")


def note(*content: Content) -> Html:
    """A line that explains what stands around it."""
    return element("p", content, class_="note")


def _section(section: Section) -> Html:
    heading = element("h2", section.title, id=f"{section.name}-title")
    return element(
        "section",
        heading,
        section.body,
        id=section.name,
        aria_labelledby=f"{section.name}-title",
    )


@functools.cache
def _style() -> Html:
    return joined(Html(resources.files(__package__).joinpath("style.css").read_text("utf-8")))
