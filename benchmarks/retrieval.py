"""Similar users among all training prefixes, beside FAISS's exact search, in turn.

    pip install faiss-cpu    # where it is missing, ours is timed alone
    python benchmarks/retrieval.py                         # 100,000 prefixes
    python benchmarks/retrieval.py --prefixes=1000000 --queries=512 --out=retrieval.json

Made-up prefixes of 64 dims, those of a user near each other. Every query gets its k nearest
distinct users but its own, with next items that differ. FAISS knows no such thing:

- `faiss`: its nearest entries, of which numpy chooses; queries with too few are searched again.
  Neighbors must be ours.
- `faiss_plain`: its k nearest entries and nothing else, which is less work.

`ours_approximate` is our search in bins, where there are prefixes enough for it; `recall` is the
share of the exact neighbors that it finds.

Both have the same cores and hold the base already, as a step that searches for all its rows does.
Prints medians and one line of JSON; the ratios are FAISS's seconds over ours.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmsrec_jax.retrieval import similar

DIM, PREFIXES_OF_A_USER, ITEMS = 64, 8, 20_000
TOLERANCE = 1e-5  # of cosines
EXACT = similar.RetrievalSettings(distinct_items=True)
IN_BINS = similar.RetrievalSettings(distinct_items=True, approximate_above=1)


def made_up(prefixes: int, queries: int) -> tuple[similar.KnowledgeBase, np.ndarray, np.ndarray]:
    """(base, embeddings float32[queries, DIM], whose they are int32[queries])."""
    rng = np.random.default_rng(0)
    users = np.arange(prefixes, dtype=np.int32) // PREFIXES_OF_A_USER
    tastes = rng.normal(size=(users[-1] + 1, DIM))

    def near(whose: np.ndarray) -> np.ndarray:
        found = tastes[whose] + 0.7 * rng.normal(size=(len(whose), DIM))
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    items = rng.integers(0, ITEMS, prefixes, dtype=np.int32)
    base = similar.KnowledgeBase(near(users), users, items, np.zeros(prefixes))
    whose = rng.integers(0, users[-1] + 1, queries, dtype=np.int32)
    return base, near(whose), whose


def chosen(
    index: Any, base: similar.KnowledgeBase, queries: np.ndarray, whose: np.ndarray, k: int
) -> similar.Neighbors:
    """What `similar.search` finds, of the candidates of a FAISS index."""
    found = similar.Neighbors(
        np.full((len(queries), k), -1, np.int32),
        np.full((len(queries), k), -1, np.int32),
        np.full((len(queries), k), -np.inf, np.float32),
    )
    at, candidates = np.arange(len(queries)), 2 * k + PREFIXES_OF_A_USER
    while len(at) and candidates < 4 * len(base.users):
        cosines, entries = index.search(queries[at], min(candidates, len(base.users)))
        users, items, count = base.users[entries], base.items[entries], np.zeros(len(at), np.int64)
        found.users[at], found.items[at], found.similarity[at] = -1, -1, -np.inf
        for column in range(entries.shape[1]):
            user, item = users[:, column], items[:, column]
            new = (user != whose[at]) & (count < k)
            new &= (found.users[at] != user[:, None]).all(1)
            new &= (found.items[at] != item[:, None]).all(1)
            place = at[new], count[new]
            found.users[place], found.items[place] = user[new], item[new]
            found.similarity[place] = cosines[new, column]
            count += new
        at, candidates = at[count < k], 4 * candidates
    return found


def check(ours: similar.Neighbors, theirs: similar.Neighbors) -> int:
    """How many neighbors differ where cosines tie; ends the program where more than that does."""
    if not np.allclose(ours.similarity, theirs.similarity, atol=TOLERANCE):
        raise SystemExit("cosines of the neighbors differ")
    other = (ours.users != theirs.users) | (ours.items != theirs.items)
    if other.mean() > 1e-3:
        raise SystemExit(f"{other.sum()} neighbors differ")
    return int(other.sum())


def recall(ours: similar.Neighbors, exact: similar.Neighbors) -> float:
    """Share of the nearest users that `ours` has."""
    return float((ours.users[:, :, None] == exact.users[:, None]).any(1).mean())


def medians(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each, in turn; the first time is dropped."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(each[1:]) for name, each in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prefixes", type=int, default=100_000, help="of the base")
    parser.add_argument("--queries", type=int, default=2048)
    parser.add_argument("--k", type=int, default=10, help="neighbors of a query")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where to write the JSON too")
    asked = parser.parse_args()
    base, queries, whose = made_up(asked.prefixes, asked.queries)

    def ours() -> similar.Neighbors:
        return similar.search(base, queries, whose, k=asked.k, settings=EXACT)

    def approximate() -> similar.Neighbors:
        return similar.search(base, queries, whose, k=asked.k, settings=IN_BINS)

    works: dict[str, Callable[[], object]] = {"ours": ours}
    found: dict[str, Any] = vars(asked) | {"out": None, "dim": DIM, "cores": os.cpu_count()}
    if similar.expected_recall(asked.prefixes, asked.k, IN_BINS) < 1:
        works["ours_approximate"] = approximate
        found["recall"] = round(recall(approximate(), ours()), 4)
    if importlib.util.find_spec("faiss") is not None:
        import faiss

        index = faiss.IndexFlatIP(DIM)
        index.add(base.embeddings)
        found["ties"] = check(ours(), chosen(index, base, queries, whose, asked.k))
        works["faiss"] = lambda: chosen(index, base, queries, whose, asked.k)
        works["faiss_plain"] = lambda: index.search(queries, asked.k)
    seconds = medians(works, asked.repeats)
    found["seconds"] = {name: round(value, 4) for name, value in seconds.items()}
    found["ratio"] = {
        name: round(value / seconds["ours"], 2) for name, value in seconds.items() if name != "ours"
    }
    found["queries_per_second"] = round(asked.queries / seconds["ours"])
    line = json.dumps(found)
    print(line)
    if asked.out:
        asked.out.write_text(line + "\n")


if __name__ == "__main__":
    main()
