"""The page where one chooses a history, sees what is recommended after it, and adds items.

It needs no script: every button sends a form, and the address holds the whole question.
"""

import dataclasses
import urllib.parse
from collections.abc import Callable, Sequence

from mmsrec_jax.data.images import FORMATS
from mmsrec_jax.data.records import LONGEST_ID, Catalog
from mmsrec_jax.methods import answer_page
from mmsrec_jax.methods.recommending import Answer, Ranked
from mmsrec_jax.pages.document import Section, document, note
from mmsrec_jax.pages.markup import Content, Exact, Html, clipped, element, joined
from mmsrec_jax.pages.pictures import Pictures
from mmsrec_jax.pages.shown_items import small, strip, title_of

MOST_SHOWN = 100
_LONGEST_NAME, _LONGEST_LINE = 60, 800
_LONGEST_IDS = 20_000  # characters of a list of ids
TEXTS = ("title", "description")  # of a new item


@dataclasses.dataclass(frozen=True)
class Question:
    """What the address of the page says.

    Attributes:
      items: raw ids of the typed history, oldest first.
      ids: a history as typed, raw ids with commas between. `items` has them too, unless they were
        refused.
      user: raw id, in place of a history; "" where there is none.
      top: how many items are shown.
      times, now: as typed, see `Recommending.recommend`; "" where nothing is.
      words: what is searched.
      is_asked: it wants an answer.
    """

    items: Sequence[str] = ()
    ids: str = ""
    user: str = ""
    top: int = 10
    times: str = ""
    now: str = ""
    words: str = ""
    is_asked: bool = False

    def fields(self) -> list[tuple[str, str]]:
        """Of the address, but for words and for whether an answer is wanted."""
        found = [("item", id) for id in self.items]
        found += [(name, value) for name in ("user", "times", "now") if (value := vars(self)[name])]
        return [*found, ("top", str(self.top))]

    def address(self) -> str:
        """Of the page with this question."""
        asked = [("ask", "1")] if self.is_asked else []
        return "/?" + urllib.parse.urlencode([*self.fields(), *asked])


@dataclasses.dataclass(frozen=True)
class Found:
    """Items of a search, or some at random.

    Attributes:
      items: of the catalog, by number.
      count: how many there are.
      left: not searched yet.
      problem: why these will not be searched; "" while they are read.
    """

    items: Sequence[int]
    count: int
    left: int = 0
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Run:
    """What the page says of the run that it asks.

    Attributes:
      name: of its folder.
      scorer: what gives the scores.
      catalog: with new items behind its own.
      num_added: how many these are; None of a run that takes none.
      users: a few, as examples.
      needs_times: of a typed history.
      keywords: of an item of the catalog.
    """

    name: str
    scorer: str
    catalog: Catalog
    num_added: int | None
    users: Sequence[str]
    needs_times: bool
    keywords: Callable[[int], list[str]]


def page(
    run: Run,
    pictures: Pictures,
    question: Question,
    found: Found,
    *,
    answer: Answer | None = None,
    seconds: float = 0.0,
    said: str = "",
    problem: str = "",
) -> str:
    """A whole page.

    Args:
      pictures: of the run's catalog.
      found: items to choose from.
      answer: to the question, which took so many `seconds`; new items beyond `question.top` are
        shown behind the first ones.
      said: what was done with the request. problem: why nothing was.
    """
    lead = f"Of the run {clipped(run.name, _LONGEST_NAME)}, {len(run.catalog):,} items."
    head = [
        element("p", lead, class_="lead"),
        element("p", clipped(said, _LONGEST_LINE), class_="said", role="status") if said else None,
        element("p", clipped(problem, _LONGEST_LINE), class_="problem", role="alert")
        if problem
        else None,
    ]
    sections = []
    if answer is not None:
        shown = _answer(run, pictures, question, answer, seconds)
        sections.append(Section("recommended", "Recommended", shown))
        sections += answer_page.reasons(answer, run.catalog, pictures)
    sections.append(
        Section("history", "History", _history(run, pictures, question, answer)),
    )
    sections.append(Section("find", "Find items", _find(run, pictures, question, found)))
    if run.num_added is not None:
        sections.append(Section("add", "Add an item", _add(run, pictures, question)))
    foot = "This server answers this machine alone. It forgets new items when it ends."
    return document(f"What {run.scorer} recommends", head, sections, foot, has_forms=True)


def refusal(run: Run, line: str) -> str:
    """A page with one line."""
    head = element("p", clipped(line, _LONGEST_LINE), class_="problem", role="alert")
    first = element("a", "open the first page", href="/")
    what = element("p", "Go back in your browser and put it right, or ", first, ".")
    back = Section("back", "What now", what)
    return document(f"What {run.scorer} recommends", head, [back], has_forms=True)


def _answer(
    run: Run, pictures: Pictures, question: Question, answer: Answer, seconds: float
) -> Html:
    first, rest = answer.items[: question.top], answer.items[question.top :]
    # Typed times are of these items alone: they would be too few for one more.
    can_go_on = answer.user is None and not run.needs_times and not question.times

    def after(item: Ranked) -> Content:
        return _button("Add to the history", "add", item.id) if can_go_on else None

    lists: list[Content] = [answer_page.ranked_list(answer, first, run.catalog, pictures, after)]
    if new := [item for item in rest if item.added]:
        lists += [
            element("h3", "New items further down"),
            answer_page.ranked_list(answer, new, run.catalog, pictures, after),
        ]
    if behind := _behind(run, question, answer):
        lists.append(note(f"New items behind place {len(answer.items):,}: {', '.join(behind)}."))
    who = "" if answer.user is None else f" for user {clipped(answer.user, _LONGEST_NAME)}"
    return joined(
        element("p", f"Answered in {seconds:.2f} s by {answer.scorer}{who}.", class_="lead"),
        answer_page.MARKS,
        _form(lists, hidden=[*question.fields(), ("ask", "1")]) if can_go_on else lists,
    )


def _behind(run: Run, question: Question, answer: Answer) -> list[str]:
    """Ids of new items that compete and are not among the items of the answer."""
    shown = {*question.items, *(item.id for item in answer.items)}
    new = run.catalog.ids[len(run.catalog) - (run.num_added or 0) :].tolist()
    return [clipped(id, _LONGEST_NAME) for id in new if id not in shown]


def _history(run: Run, pictures: Pictures, question: Question, answer: Answer | None) -> Html:
    parts: list[Content] = []
    if question.items:
        parts.append(_typed(run, pictures, question))
    elif answer is not None:
        typed = Question([item.id for item in answer.history], top=question.top)
        parts += [
            answer_page.history(answer, run.catalog, pictures),
            element("p", element("a", "Go on from these items", href=typed.address())),
        ]
    else:
        find = element("a", "find items", href="#find")
        parts.append(element("p", "Nothing is chosen yet: ", find, ", type ids, or name a user."))
    parts += [element("h3", "Ids of items"), _ids(question)]
    parts += [element("h3", "A user of the data"), _user(run, question)]
    return joined(parts)


def _typed(run: Run, pictures: Pictures, question: Question) -> Html:
    numbers = [run.catalog.index[id] for id in question.items]
    remove = [_button("Remove", "drop", str(place)) for place in range(len(numbers))]
    hidden = [pair for pair in question.fields() if pair[0] == "item"]
    times = element(
        "details",
        element("summary", "Times"),
        _field("Seconds since 1970 of each item, separated by commas", "times", question.times),
        _field("When this is asked, seconds since 1970", "now", question.now),
        open=run.needs_times or bool(question.times or question.now),
    )
    # The first button of a form is the one that the enter key presses.
    return _form(
        [
            element("div", _main_button(), _top(question), class_="row"),
            times,
            note(f"{len(numbers)} items, oldest first."),
            strip(numbers, pictures, remove),
        ],
        hidden=hidden,
    )


def _ids(question: Question) -> Html:
    """A history in one field; it takes the place of what is chosen."""
    label = "Ids of items, oldest first, separated by commas"
    text = question.ids or ", ".join(question.items)
    return _form(
        [
            _field(label, "ids", text, longest=_LONGEST_IDS),
            element("div", _main_button(), _top(question), class_="row"),
        ]
    )


def _user(run: Run, question: Question) -> Html:
    examples: list[Content] = []
    for user in run.users:
        asked = Question(user=user, top=question.top, is_asked=True)
        examples += [element("a", clipped(user, _LONGEST_NAME), href=asked.address()), " "]
    return joined(
        _form(
            element(
                "div",
                _field("User id", "user", question.user),
                _top(question),
                _main_button(),
                class_="row",
            )
        ),
        note("For example ", examples) if examples else None,
    )


def _find(run: Run, pictures: Pictures, question: Question, found: Found) -> Html:
    cards = []
    for number in found.items:
        id = str(run.catalog.ids[number])
        cards.append(
            element(
                "li",
                pictures.picture(number),
                element("span", title_of(pictures.item(number))),
                small(id),
                small(", ".join(run.keywords(number))),
                _button("Add", "add", id),
            )
        )
    if question.words:
        told = f"{len(found.items)} of {found.count:,} items with these words"
    else:
        told = "Some items, drawn at random"
    left = f"; {found.left:,} items are not read yet" if found.left else ""
    if found.problem:
        why = clipped(found.problem, _LONGEST_LINE)
        left = f"; {found.left:,} items cannot be searched: {why}"
    typed = dataclasses.replace(question, user="")
    search = element(
        "div",
        _field("Words of title or keywords, or an id", "q", question.words, kind="search"),
        element("button", "Find"),
        class_="row",
    )
    cards_html = element("ul", cards, class_="grid") if cards else None
    return _form([search, note(f"{told}{left}."), cards_html], hidden=typed.fields(), to="/#find")


def _add(run: Run, pictures: Pictures, question: Question) -> Html:
    own = len(run.catalog) - (run.num_added or 0)
    new = list(range(own, len(run.catalog)))
    accepted = ",".join(f"image/{name.lower()}" for name in FORMATS)
    form = _form(
        [
            _field("Title", "title", required=True),
            element(
                "label",
                element("span", "Description"),
                element("textarea", name="description", rows=3, maxlength=5000),
            ),
            _field("Category", "category"),
            _field("Id, else the server gives one", "id", longest=LONGEST_ID),
            element(
                "label",
                element("span", "Picture"),
                element("input", type="file", name="picture", accept=accepted),
            ),
            element("button", "Add it and ask again", class_="main"),
        ],
        hidden=question.fields(),
        to="/add",
        sends_files=True,
    )
    return joined(
        note(
            "Nothing is trained: the run's summarizer writes its keywords, and it competes from "
            "then on, until this server ends."
        ),
        form,
        [element("h3", "New items"), strip(new, pictures)] if new else None,
    )


def _form(
    content: Content,
    *,
    hidden: Sequence[tuple[str, str]] = (),
    to: str = "/",
    sends_files: bool = False,
) -> Html:
    kept = [
        element("input", type="hidden", name=name, value=Exact(value)) for name, value in hidden
    ]
    return element(
        "form",
        kept,
        content,
        action=to,
        method="post" if sends_files else "get",
        enctype="multipart/form-data" if sends_files else None,
    )


def _field(
    label: str,
    name: str,
    value: str = "",
    *,
    kind: str = "text",
    required: bool = False,
    longest: int = 1000,
) -> Html:
    field = element(
        "input",
        type=kind,
        name=name,
        value=Exact(value) if value else None,
        required=required,
        maxlength=longest,
        autocomplete="off",
    )
    return element("label", element("span", label), field)


def _top(question: Question) -> Html:
    field = element("input", type="number", name="top", value=question.top, min=1, max=MOST_SHOWN)
    return element("label", element("span", "Items to show"), field, class_="short")


def _main_button() -> Html:
    return element("button", "Recommend", name="ask", value="1", class_="main")


def _button(label: str, name: str, value: str) -> Html:
    return element("button", label, name=name, value=Exact(value), class_="small")
