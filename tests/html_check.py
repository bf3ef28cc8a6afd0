"""What must hold of every page, found by an HTML parser."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"br", "hr", "img", "input", "link", "meta"}
FORBIDDEN = {"script", "iframe", "object", "embed", "base"}
OF_FORMS = {"form", "input", "button", "textarea"}


@dataclass
class Node:
    """An element with what is in it, in order: elements and texts."""

    tag: str
    given: dict = field(default_factory=dict)
    parts: list["Node | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(part if isinstance(part, str) else part.text for part in self.parts)

    @property
    def kinds(self) -> list[str]:
        """Its classes."""
        return (self.given.get("class") or "").split()

    def all(self, tag: str = "", kind: str = "") -> Iterator["Node"]:
        """The elements in it, at any depth, of this tag and class where they are given."""
        for part in self.parts:
            if isinstance(part, Node):
                if tag in ("", part.tag) and (not kind or kind in part.kinds):
                    yield part
                yield from part.all(tag, kind)


class Page(HTMLParser):
    """A parsed page; `problems` is empty when it is sound, `root` has its elements.

    served: by a server of ours, to which its links and forms may lead. linked: its links may lead
    to pages in folders below its own.
    """

    def __init__(self, text: str, *, served: bool = False, linked: bool = False):
        super().__init__()
        self._served, self._linked = served, linked
        self.problems: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.headings: list[int] = []
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.pictures: list[dict] = []
        self.seen: list[tuple[str, dict]] = []
        self.root = Node("")
        self._nodes = [self.root]
        self._open: list[str] = []
        self._text: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        self._finish()

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.seen.append((tag, given))
        if tag in FORBIDDEN or (tag in OF_FORMS and not self._served):
            self.problems.append(f"<{tag}> at {self.getpos()}")
        for name, value in given.items():
            leads = name in ("href", "src", "action") and not self._stays(value)
            if name.startswith("on") or leads:
                self.problems.append(f"{name}={value[:40]} of <{tag}>")
        if "id" in given:
            self.ids.append(given["id"])
        is_field = tag == "textarea" or (tag == "input" and given.get("type") != "hidden")
        if is_field and "label" not in self._open:
            self.problems.append(f"a field without a label: {given}")
        if tag == "a" and given["href"].startswith("#"):
            self.links.append(given["href"])
        if tag == "img":
            self.pictures.append(given)
            if not given.get("alt"):
                self.problems.append("a picture without alt")
        if given.get("role") == "img" and not given.get("aria-label"):
            self.problems.append("a drawing without a label")
        if tag in ("h1", "h2", "h3", "h4"):
            self.headings.append(int(tag[1]))
        if tag == "table":
            self.tables.append(("", []))
        if tag == "tr":
            self.tables[-1][1].append([])
        if tag in ("th", "td", "caption"):
            self._text = []
        if tag == "th" and given.get("scope") not in ("col", "row"):
            self.problems.append("a table header without scope")
        node = Node(tag, given)
        self._nodes[-1].parts.append(node)
        if tag not in VOID:
            self._open.append(tag)
            self._nodes.append(node)

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.problems.append(f"</{tag}> closes another element, at {self.getpos()}")
        if len(self._nodes) > 1:
            self._nodes.pop()
        text = "".join(self._text).strip()
        if tag in ("th", "td"):
            self.tables[-1][1][-1].append(text)
        if tag == "caption":
            self.tables[-1] = (text, self.tables[-1][1])

    def handle_data(self, data):
        self._text.append(data)
        self._nodes[-1].parts.append(data)
        if self._open and self._open[-1] != "style":
            self.words += data

    def table(self, words: str) -> list[list[str]]:
        """The one table whose caption has these words."""
        (found,) = [rows for caption, rows in self.tables if words in caption]
        return found

    def cells(self, words: str) -> list[list[Node]]:
        """The same with all that is in the cells."""
        (found,) = [
            table
            for table in self.root.all("table")
            if any(words in caption.text for caption in table.all("caption"))
        ]
        return [[part for part in row.parts if isinstance(part, Node)] for row in found.all("tr")]

    def charts(self) -> dict[str, list[str]]:
        """Each step of the section of curves -> the labels of the drawings below its heading."""
        found: dict[str, list[str]] = {}
        (section,) = [part for part in self.root.all("section") if part.given["id"] == "training"]
        for part in section.all():
            if part.tag == "h3":
                found[part.text] = []
            elif part.tag == "svg":
                next(reversed(found.values())).append(part.given["aria-label"])
        return found

    def _stays(self, address: str) -> bool:
        is_own = self._served and address.startswith("/") and not address.startswith("//")
        is_below = self._linked and re.fullmatch(r"(\w[\w.+=-]*/)+report\.html", address)
        return address.startswith(("#", "data:")) or is_own or bool(is_below)

    def _finish(self):
        self.problems += [f"<{tag}> stays open" for tag in self._open]
        self.problems += [f"id {name} twice" for name in set(self.ids) if self.ids.count(name) > 1]
        self.problems += [
            f"link to {link}, which is not there" for link in self.links if link[1:] not in self.ids
        ]
        if self.headings[:1] != [1] or self.headings.count(1) != 1:
            self.problems.append("not one h1 first")
        for before, after in zip(self.headings, self.headings[1:], strict=False):
            if after > before + 1:
                self.problems.append(f"h{after} below h{before}")
