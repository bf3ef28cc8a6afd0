"""Why an item stands where it does: keywords in common and similar users, counted anew."""

import json
import re
from collections import Counter

import page_run
import pyarrow.parquet as pq
import pytest
from html_check import Page

from mmsrec_jax.evaluation.ranking import read_ranks


@pytest.fixture(scope="module")
def known(states):
    """What the files of the run say: item -> keywords, user -> history before the target, user ->
    (item, similarity) of similar users, user -> the true item and the list."""
    run, _ = states
    lines = (run.folder / "summaries" / "summaries.jsonl").read_text().splitlines()
    keywords = {row["item"]: [*row["image"], *row["text"]] for row in map(json.loads, lines)}
    histories = run.dataset.histories
    before = {user: histories.of(user)[: page_run.LENGTH - 1].tolist() for user in range(30)}
    near = {
        row["user"]: [
            (item, similarity)
            for item, similarity in zip(row["items"], row["similarity"], strict=True)
            if item not in before[row["user"]]
        ]
        for row in pq.read_table(run.folder / "retrieval" / "neighbors.parquet").to_pylist()
    }
    ranks, _ = read_ranks(run.folder / "evaluation" / "ranks-mmsrarec-full.parquet")
    lists = {
        int(user): (int(target), top.tolist())
        for user, target, top in zip(ranks.users, ranks.targets, ranks.top, strict=True)
    }
    return keywords, before, near, lists


def people(states):
    """Number of each user that the page shows -> the element."""
    page: Page = states[1]["evaluation"][1]
    found = {}
    for person in page.root.all("details", "person"):
        name = next(person.all("h3", "name")).text
        found[int(re.fullmatch(r"u(\d+)<b>", name)[1])] = person
    return found


def told(line):
    """Of a line of a ranked list: marked words, other words, what is said of similar users."""
    (what,) = line.all("div", "what")
    words = list(what.all("span", "tag"))
    shared = [word.text for word in words if "shared" in word.kinds]
    others = [word.text for word in words if "shared" not in word.kinds]
    return shared, others, "".join(said.text for said in what.all("div", "id"))


def test_words_in_common_and_similar_users_of_every_item(states, known):
    keywords, before, near, lists = known
    seen, sentences = Counter(), Counter()
    shown = people(states)
    assert len(shown) == 10
    for user, person in shown.items():
        counts = Counter(word for item in before[user] for word in keywords[item])
        beside = {word for item, _ in near[user] for word in keywords[item]}
        taken = Counter(item for item, _ in near[user])
        target, top = lists[user]
        (truth,) = person.all("ul", "ranked")
        (listed,) = person.all("ol", "ranked")
        lines = [*truth.all("li"), *listed.all("li")]
        assert len(lines) == 11
        for item, line in zip([target, *top[:10]], lines, strict=True):
            shared = [
                f"{word} × {counts[word]}" if counts[word] else word
                for word in keywords[item]
                if counts[word] or word in beside
            ]
            others = [w for w in keywords[item] if not counts[w] and w not in beside]
            said = {0: "", 1: "a similar user took it next"}.get(
                taken[item], f"{taken[item]} similar users took it next"
            )
            assert told(line) == (shared, others, said), (user, item)
            assert ("truth" in line.kinds) == (item == target)
            sentences[said] += 1
            seen["counted"] += sum(" × " in word for word in shared)
            seen["beside"] += sum(" × " not in word for word in shared)
            seen["others"] += len(others)
    assert len(sentences) == 3 and len(seen) == 3 and min(seen.values()) > 3


def test_similar_users_are_those_of_the_file(states, known):
    """Pictures have one color, which names the item; each fifth item has none."""
    _, _, near, _ = known
    for user, person in people(states).items():
        strip = list(person.all("ul", "strip"))[1]
        entries = list(strip.all("li"))
        wanted = [f"similarity {similarity:.2f}" for _, similarity in near[user]]
        assert [next(entry.all("span", "id")).text for entry in entries] == wanted
        for (item, _), entry in zip(near[user], entries, strict=True):
            pictures = [page_run.color(image.given["src"]) for image in entry.all("img")]
            assert pictures == ([item] if item % 5 else [])
