"""What the local page answers: questions to a finished run, a search in its items, new items."""

import dataclasses
import time
from pathlib import Path

import numpy as np
from absl import logging

from mmsrec_jax.data import images
from mmsrec_jax.data.images import ImageError
from mmsrec_jax.data.records import LONGEST_ID, Item
from mmsrec_jax.methods import recommending
from mmsrec_jax.methods.recommending import Answer, Recommending
from mmsrec_jax.methods.scorer import item_indices
from mmsrec_jax.pages.items import sample
from mmsrec_jax.pages.pictures import Pictures
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.serving import page
from mmsrec_jax.serving.forms import Form, Refused
from mmsrec_jax.serving.item_search import ItemSearch
from mmsrec_jax.serving.local_server import Request, Response
from mmsrec_jax.serving.page import Found, Question, Run

MOST_NEW = 100  # items that one server takes
_MOST_ITEMS = 500  # of a typed history
_LONGEST_TEXT = 5000  # characters of a field
_CHOICES = 24  # items of a search
_DEEP = 500  # items of an answer among which new ones are looked for
_EXAMPLES = 5
_MOST_DIGITS = 12  # Python refuses to read numbers of thousands of digits


class RecommendSite:
    """A `local_server.Site`.

    Args:
      asked: loaded and prepared.
      workdir: of the run, for the page its last name alone.
    """

    def __init__(self, asked: Recommending, workdir: Path):
        self._asked, self._workdir = asked, workdir
        self._search = ItemSearch(asked.catalog, asked.keywords)
        self._pictures = Pictures(asked.catalog)
        self._drawn = sample(asked.catalog, _CHOICES // 2, seed=0)
        users = asked.users
        at = np.linspace(0, len(users) - 1, min(_EXAMPLES, len(users))).astype(int)
        self._users = [str(user) for user in users[at]]

    def respond(self, request: Request) -> Response:
        """The page, or what the form of a new item leads to. Raises Refused and UserError."""
        self._pictures.begin()
        if request.path == "/" and request.form is None:
            return self._answered(request.query)
        if request.path == "/add" and request.form is not None:
            return self._added(request.form)
        raise Refused("there is no such page", 404)

    def refusal(self, line: str) -> str:
        """A page with one line."""
        return page.refusal(self._run(), self._plain(line))

    def _answered(self, query: Form) -> Response:
        question, problem, answer, seconds = Question(), "", None, 0.0
        try:
            question = _question(query)
            if question.items:
                item_indices(self._asked.catalog, question.items, "history")
        except (UserError, Refused) as error:
            question, problem = Question(ids=", ".join(query.all("ids"))), str(error)
        if question.is_asked:
            try:
                answer, seconds = self._ask(question)
            except (UserError, Refused) as error:
                problem = str(error)
        shown = page.page(
            self._run(),
            self._pictures,
            question,
            self._found(question.words),
            answer=answer,
            seconds=seconds,
            said=self._news(query.one("added")),
            problem=self._plain(problem),
        )
        return Response(shown, 400 if problem else 200)

    def _ask(self, question: Question) -> tuple[Answer, float]:
        """The answer, and how many seconds it took."""
        if question.user and question.items:
            raise Refused("a user and a history are given; give one of them")
        if not question.user and not question.items:
            raise Refused("the history is empty: find items and add them, or name a user")
        deep = max(question.top, _DEEP) if self._asked.num_added else question.top
        times = question.times.replace(",", " ").split()
        start = time.perf_counter()
        answer = self._asked.recommend(
            user=question.user or None,
            history=None if question.user else question.items,
            times=recommending.numbers(times, "times") if times else None,
            now=recommending.numbers([question.now], "now")[0] if question.now else None,
            top=deep,
            pictures=False,
        )
        seconds = time.perf_counter() - start
        whose = "a user" if question.user else f"a history of {len(question.items)} items"
        logging.info("answered for %s in %.2f s", whose, seconds)
        return answer, seconds

    def _added(self, form: Form) -> Response:
        """Adds the item of a form and leads to the answer to the question that came with it."""
        if not self._asked.takes_new_items:
            raise Refused("this run takes no new items")
        if self._asked.num_added >= MOST_NEW:
            raise Refused(
                f"this server has {MOST_NEW} new items and takes no more; put them into a file for "
                "--add"
            )
        question = _question(form)
        if question.items:
            item_indices(self._asked.catalog, question.items, "history")
        item = self._item(form)
        start = time.perf_counter()
        self._asked.add([item])
        self._pictures = Pictures(self._asked.catalog)
        logging.info("added an item in %.2f s", time.perf_counter() - start)
        is_asked = bool(question.items or question.user)
        address = dataclasses.replace(question, is_asked=is_asked).address()
        return Response(moved=address + "&added=" + str(len(self._asked.catalog) - 1))

    def _item(self, form: Form) -> Item:
        """Of the fields of a form. Raises Refused."""
        fields = {name: " ".join(form.one(name).split()) for name in (*page.TEXTS, "category")}
        for name, value in fields.items():
            if len(value) > _LONGEST_TEXT:
                raise Refused(f"the {name} has more than {_LONGEST_TEXT:,} characters; shorten it")
        category = fields.pop("category") or None
        if not fields["title"]:
            raise Refused("the item has no title; give it one")
        id = form.one("id") or self._free_id()
        if len(id) > LONGEST_ID or not id.isprintable():
            raise Refused(
                f"the id has more than {LONGEST_ID} characters or one that cannot be shown"
            )
        picture = form.files.get("picture")
        if picture is not None:
            try:
                images.decode(picture)
            except ImageError as error:
                raise Refused(f"the picture cannot be read: {error}") from error
        texts = {name: value for name, value in fields.items() if value}
        return Item(id, texts, picture, category)

    def _free_id(self) -> str:
        known = self._asked.catalog.index
        number = self._asked.num_added + 1
        while f"new-{number}" in known:
            number += 1
        return f"new-{number}"

    def _news(self, number: str) -> str:
        """What is said of the item that was added before the present page."""
        catalog = self._asked.catalog
        first = len(catalog) - self._asked.num_added
        place = _number(number)
        if place is None or not first <= place < len(catalog):
            return ""
        words = ", ".join(self._asked.keywords(place))
        return f"Added {catalog.ids[place]}. Its keywords: {words or 'none'}."

    def _found(self, words: str) -> Found:
        catalog, left = self._asked.catalog, self._search.num_left
        if not words:
            return Found(self._drawn, len(catalog))
        items, count = self._search.find(catalog, words, _CHOICES)
        return Found(items, count, left, self._plain(self._search.problem))

    def _run(self) -> Run:
        asked = self._asked
        return Run(
            self._workdir.name,
            asked.scorer_name,
            asked.catalog,
            asked.num_added if asked.takes_new_items else None,
            self._users,
            asked.needs_times,
            asked.keywords,
        )

    def _plain(self, line: str) -> str:
        """Without where on this machine the run lies."""
        return line.replace(str(self._workdir), self._workdir.name)


def _number(text: str) -> int | None:
    """What the digits say; None where there are others than those, or too many."""
    is_number = text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
    return int(text) if is_number else None


def _question(form: Form) -> Question:
    """Of an address or of a form. Raises Refused."""
    items = form.all("item")
    if form.one("drop"):
        place = _number(form.one("drop"))
        if place is None or place >= len(items):
            raise Refused("the history has no such place; go back and try again")
        del items[place]
    items += form.all("add")
    items += [id for text in form.one("ids").split(",") if (id := text.strip())]
    if len(items) > _MOST_ITEMS:
        raise Refused(f"the history has more than {_MOST_ITEMS} items; name the latest alone")
    top = _number(form.one("top") or "10")
    if top is None or not 1 <= top <= page.MOST_SHOWN:
        raise Refused(f"items to show: give a number from 1 to {page.MOST_SHOWN}")
    return Question(
        items=items,
        ids=form.one("ids"),
        user=form.one("user"),
        top=top,
        times=form.one("times"),
        now=form.one("now"),
        words=" ".join(form.one("q").split()),
        is_asked=bool(form.one("ask")),
    )
