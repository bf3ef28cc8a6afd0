"""Sections about the data and its items: what was read and kept, pictures, item cards."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmsrec_jax.data.records import Catalog, Item
from mmsrec_jax.evaluation.claims import CONTRADICTED, SUPPORTED
from mmsrec_jax.pages import curves, written
from mmsrec_jax.pages.charts import short
from mmsrec_jax.pages.curves import Series
from mmsrec_jax.pages.document import facts, folded, table
from mmsrec_jax.pages.markup import Content, Html, clipped, element, joined
from mmsrec_jax.pages.pictures import Pictures
from mmsrec_jax.pages.shown_items import tags, title_of
from mmsrec_jax.pages.written import About
from mmsrec_jax.runtime import disk

PICTURED, CARDS = 24, 12
_LONGEST_TEXT = 200
_MOST_CLAIMS = 24
_MOST_LISTED = 12


def sample(catalog: Catalog, count: int, seed: int) -> list[int]:
    """Items drawn without repetition, those with pictures first where there are enough."""
    rng = np.random.default_rng(seed)
    pictured = np.flatnonzero(catalog.has_image)
    pool = pictured if len(pictured) >= count else np.arange(len(catalog))
    return sorted(rng.choice(pool, min(count, len(pool)), replace=False).tolist())


def data_section(data: Path, catalog: Catalog, pictures: Pictures) -> Html:
    """The report of step `data` as tables, and pictures of items drawn at random."""
    report = disk.read_json(data / "report.json", "run the step data again")
    shown = sample(catalog, PICTURED, seed=0)
    grid = element("ul", [_pictured(item, pictures) for item in shown], class_="grid")
    return joined(
        element("p", f"Source: {report['source']}.", class_="lead"),
        _counts(report),
        element("h3", f"{len(shown)} items, drawn at random"),
        grid,
        folded("What the items have, targets, and what was noticed", _details(report)),
    )


def cards_section(
    workdir: Path, catalog: Catalog, pictures: Pictures, done: Collection[str]
) -> Html:
    """Cards of a few items with all that was written of them; done: as of `written.of_items`."""
    claims = "claims" in done
    rewards = None
    if "summarizer" in done:
        rewards = curves.read(workdir / "summarizer" / "metrics.jsonl")
    items = written.examples(workdir, CARDS, done) or sample(catalog, CARDS, seed=1)
    about = written.of_items(workdir, items, done)
    cards = [_card(pictures.item(i), about.get(i, About()), pictures.picture(i)) for i in items]
    return joined(
        _rewards(rewards) if rewards else None,
        _claims(workdir) if claims else None,
        element("ul", cards, class_="cards"),
    )


def _counts(report: Mapping[str, Any]) -> Html:
    rows: list[list[Content]] = []
    for name in ("read", "stored"):
        if name == "stored":
            for dropped in report["dropped"][:_MOST_LISTED]:
                counts = [f"{dropped[kind]:,}" for kind in ("users", "items", "interactions")]
                rows.append([f"− {clipped(dropped['why'], 80)}", *counts, "", ""])
        if counted := report[name]:
            lengths = [f"{counted[f'length_{kind}']:g}" for kind in ("min", "median", "max")]
            rows.append(
                [
                    name,
                    *(f"{counted[kind]:,}" for kind in ("users", "items", "interactions")),
                    f"{counted['density']:.3%}",
                    " / ".join(lengths),
                ]
            )
    head = ["", "users", "items", "interactions", "density", "history, min / median / max"]
    return table("What was read, dropped and kept", head, rows)


def _details(report: Mapping[str, Any]) -> Html:
    items = max(report["stored"].get("items", 0), 1)
    coverage = [
        [clipped(name, 60), f"{count:,}", f"{count / items:.1%}"]
        for name, count in list(report["coverage"].items())[:40]
    ]
    targets = [(f"{part} targets", f"{count:,}") for part, count in report["targets"].items()]
    notes = [
        element("li", f"{count:,} {clipped(what, 200)}") for what, count in report["notes"].items()
    ]
    corrupt = [
        element("li", f"{clipped(name, 80)}: {clipped(reason, 120)}")
        for name, reason in report["corrupt_images"][:_MOST_LISTED]
    ]
    count = len(report["corrupt_images"])
    return joined(
        facts(targets),
        table("Items that have a text, an attribute, a picture", ["", "items", "share"], coverage),
        element("ul", notes, class_="note") if notes else None,
        [element("p", f"Pictures that could not be read: {count:,}"), element("ul", corrupt)]
        if corrupt
        else None,
    )


def _pictured(number: int, pictures: Pictures) -> Html:
    item = pictures.item(number)
    return element("li", pictures.picture(number), element("span", title_of(item)))


def _card(item: Item, about: About, picture: Html) -> Html:
    texts = [value for name, value in item.text.items() if name != "title"]
    attributes = [f"{name}: {value}" for name, value in item.attributes.items()]
    rows: list[tuple[str, Content]] = []
    if about.image:
        rows.append(("keywords of the picture", tags(about.image, "shared")))
    if about.text:
        rows.append(("keywords of the text", tags(about.text, "shared")))
    if about.answers:
        asked = [f"{question}: {answer}" for question, answer in about.answers]
        rows.append(("answers about the picture", tags(asked)))
    if about.claims:
        told = [_claim(words, outcome) for words, outcome in about.claims[:_MOST_CLAIMS]]
        rows.append(("summary, checked", told))
    elif about.summary:
        rows.append(("summary", tags(about.summary, "shared")))
    if about.rewards:
        scored = [f"{_worded(name)} {value:.2f}" for name, value in about.rewards.items()]
        rows.append(("rewards of the keywords", tags(scored)))
    if attributes:
        rows.append(("stated in the data", tags(attributes)))
    return element(
        "li",
        picture,
        element("h3", title_of(item), class_="title"),
        element("div", [item.id, f" · {item.category}" if item.category else None], class_="id"),
        element("div", clipped(" · ".join(texts), _LONGEST_TEXT), class_="wide"),
        [
            element("div", element("h4", name), value, class_="wide")
            for name, value in rows
        ],
        class_="card",
    )  # fmt: skip


def _worded(name: str) -> str:
    return name.replace("_", " ")


def _claim(words: str, outcome: str) -> Html:
    kind = {SUPPORTED: "tag yes", CONTRADICTED: "tag no"}.get(outcome, "tag")
    return element("span", f"{clipped(words, 40)} ({outcome})", class_=kind)


def _claims(workdir: Path) -> Html | None:
    path = workdir / "claims" / "claims.json"
    if not path.is_file():
        return None
    parts = disk.read_json(path, "run the step claims again")
    names = ("supported", "unsupported", "contradicted", "told")

    def line(name: str, part: Mapping[str, Any]) -> list[Content]:
        shares = ["–" if part[n] is None else f"{part[n]:.1%}" for n in names]
        return [name, f"{part.get('texts', ''):,}", f"{part['claims']:,}", *shares]

    return joined(
        element("h3", "How much of what was written is true"),
        table(
            "Claims of texts, checked against what is known; told: share of the stated values that "
            "a text names",
            ["texts of", "texts", "claims", *names],
            [line(name, part) for name, part in parts.items()],
        ),
        element("h3", "Examples"),
    )


def _rewards(rewards: Series) -> Html | None:
    found = [
        (_worded(name.partition("/")[2]), short(float(values[-1])))
        for name, (_, values) in rewards.items()
        if name.startswith("reward/") and name != "reward/groups_without_spread"
    ]
    if not found:
        return None
    return joined(
        element("h3", "Mean rewards of keywords at the last logged update of the summarizer"),
        facts(found),
    )
