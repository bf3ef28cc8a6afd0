"""The page of `launch/data.py`: a data set before anything is trained on it."""

from collections.abc import Sequence

from mmsrec_jax.data.inspection.findings import Finding, Findings
from mmsrec_jax.data.inspection.samples import LONGEST, Choice, History
from mmsrec_jax.data.inspection.tables import Share, Table, shown
from mmsrec_jax.data.records import Catalog
from mmsrec_jax.pages.document import Section, bar, document, note, stated, table
from mmsrec_jax.pages.markup import Content, Html, clipped, element, joined
from mmsrec_jax.pages.pictures import Pictures
from mmsrec_jax.pages.shown_items import small, strip

_LONGEST_NAME, _LONGEST_LINE = 60, 300


def page(
    source: str,
    command: str,
    catalog: Catalog,
    *,
    histories: Sequence[History] = (),
    tables: Sequence[Table] = (),
    findings: Findings | None = None,
) -> str:
    """A whole page of what is given.

    Args:
      source: where the data is from. command: what made the page.
      histories: shown with small pictures, which the page holds.
    """
    pictures = Pictures(catalog)
    sections = []
    if findings is not None:
        sections.append(Section("problems", "Problems", _findings(findings)))
    if tables:
        sections.append(Section("numbers", "Numbers", joined([_table(found) for found in tables])))
    if histories:
        people = [_history(found, pictures, is_open=i < 3) for i, found in enumerate(histories)]
        sections.append(Section("histories", "Histories", _histories(people, pictures)))
    head = element("p", f"Source: {source}.", class_="lead")
    return document("Data", head, sections, foot=element("code", clipped(command, _LONGEST_LINE)))


def _findings(findings: Findings) -> Html:
    if not findings.problems and not findings.notes:
        return element("p", "None was found.")
    return joined(
        _list(f"{len(findings.problems):,} to be put right", findings.problems),
        _list(f"{len(findings.notes):,} worth knowing", findings.notes),
    )


def _list(title: str, found: Sequence[Finding]) -> Html | None:
    if not found:
        return None
    rows = [
        [clipped(f.where, _LONGEST_LINE), clipped(f.what, _LONGEST_LINE), f.remedy] for f in found
    ]
    return table(title, ["where", "what", "what to do"], rows, text_columns=3)


def _table(found: Table) -> Html:
    rows: list[list[Content]] = [
        [clipped(name, _LONGEST_NAME), *map(_cell, cells)] for name, cells in found.rows
    ]
    return table(found.title, ["", *found.columns], rows)


def _cell(cell: str | int | float | None) -> Content:
    if not isinstance(cell, Share):
        return shown(cell)
    return [shown(cell), bar(cell)]


def _histories(people: Sequence[Html], pictures: Pictures) -> Html:
    return joined(
        note(
            f"{len(people)} of the users that are left after filtering, the latest {LONGEST} "
            "choices of each, oldest first."
        ),
        people,
        note(f"{pictures.left_out:,} pictures are left out to keep the page small.")
        if pictures.left_out
        else None,
    )


def _history(found: History, pictures: Pictures, *, is_open: bool) -> Html:
    summary = element(
        "summary",
        element("span", clipped(found.user, _LONGEST_NAME), class_="name"),
        element("span", f"{found.count:,} interactions"),
    )
    items = [choice.item for choice in found.choices]
    row = strip(items, pictures, list(map(_below, found.choices)))
    told = stated(found.stated) if found.stated else None
    return element("details", summary, element("div", told, row), class_="person", open=is_open)


def _below(choice: Choice) -> Content:
    rating = "" if choice.rating is None else f"rated {choice.rating:g}"
    told = [choice.when[:10], choice.pause, rating, choice.category]
    target = choice.part in ("validation", "test")
    return [
        [small(text) for text in told if text],
        element("span", choice.part, class_="tag yes") if target else None,
    ]
