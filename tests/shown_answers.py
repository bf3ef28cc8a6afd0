"""What an answer of `launch/recommend.py` has to show, told from the files of its run."""

import itertools
import json
from collections import Counter

OF_AN_ITEM = {"id": str, "title": str, "keywords": list}
OF_A_NEIGHBOR = OF_AN_ITEM | {"similarity": float}
OF_A_RANKED_ITEM = OF_AN_ITEM | {
    "rank": int, "score": float, "sequential_score": (float, type(None)),
    "picture": (str, type(None)), "added": bool,
}  # fmt: skip


def check_fields(found, wanted):
    assert set(found) == set(wanted)
    for name, kind in wanted.items():
        assert isinstance(found[name], kind), name
    assert all(isinstance(word, str) for word in found["keywords"])


def keywords(workdir):
    """By item, as step `summaries` left them: of the text first, frequent ones first."""
    lines = (workdir / "summaries" / "summaries.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    counts = Counter(word for row in rows for word in row["image"] + row["text"])
    found = {}
    for row in rows:
        parts = (
            sorted(row[name], key=lambda word: (-counts[word], word)) for name in ("text", "image")
        )
        found[row["id"]] = list(dict.fromkeys(itertools.chain(*parts)))
    return found
