"""Ranking 1 + 20 and the whole catalog, beside transformers, in turn on the same weights.

    python benchmarks/ranking.py
    python benchmarks/ranking.py --kind=keywords --repeats=5 --out=ranking.json

A Qwen2.5-VL of 0.12B with random weights (hidden 512, 12 layers, tower of 8 layers), in float32 on
the CPU. Users have a history in words; candidates have an image of 64 slots and words, or keywords
alone. Forms of ours:

- `joint`: candidates are suffixes on the user's history, all in one row
- `cached`: prompts of users are read, keys and values of the candidates are stored already
- `catalog`: the same for every item of the catalog

Those of transformers: `one_forward_each`, all candidates of all users in one batch, and
`shared_prefix`, the same behind a cache of the histories. Joint scores must be those of both, and
cached scores those of one forward a candidate with an explicit mask. Each side is a process of its
own on the same cores. Prints users/s (medians) and what the FLOPs of `models/flops.py` would allow,
then one line of JSON.
"""

import argparse
import json
import statistics
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import processes
import ranking_sides

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.accelerator.peers.users import CANDIDATES, KINDS, Sizes

FORMS = {
    "ours": ("joint", "cached", "catalog", "one_user", "encode_items"),
    "theirs": ("shared_prefix", "one_forward_each"),
}
TOLERANCE = 2e-4  # of scores of deviation near one


def sizes(kind: str, users: int, prefix: int) -> Sizes:
    if kind == "images":
        return Sizes(users, prefix, words=40, image=(224, 224), tail=1)
    return Sizes(users, prefix, words=24, tail=1)


def measure(directory: str, case: ranking_sides.Case, repeats: int) -> dict[str, Any]:
    """Seconds of every form and FLOPs of a user."""
    sides = {name: processes.Side(ranking_sides.serve, name, directory, case) for name in FORMS}
    seconds: dict[str, list[float]] = {form: [] for forms in FORMS.values() for form in forms}
    scores: dict[str, np.ndarray] = {}
    try:
        for call in sides.values():
            call("load")
        masked = sides["theirs"]("under_the_mask")["result"]
        for repeat in range(repeats + 1):
            for name in list(FORMS)[:: 1 if repeat % 2 else -1]:
                for form in FORMS[name]:
                    answer = sides[name](form)
                    scores[form] = answer["result"]
                    seconds[form] += [answer["seconds"]] if repeat else []
        flops = sides["ours"]("flops")
    finally:
        for call in sides.values():
            call.close()
    apart = {
        "joint": distance(scores["joint"], scores["shared_prefix"]),
        "one_forward_each": distance(scores["one_forward_each"], scores["shared_prefix"]),
        "cached": distance(scores["cached"][:1], masked),
        "catalog": distance(scores["catalog"][0, :CANDIDATES], scores["cached"][0]),
    }
    return {
        "seconds": {form: statistics.median(each) for form, each in seconds.items()},
        "apart": apart,
        "deviation": float(scores["joint"].std()),
        "flops_of_a_user": flops,
        "latency": quantiles(seconds["one_user"]),
    }


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest; ends the program when scores are not the same."""
    found = float(np.abs(a - b).max())
    if not found <= TOLERANCE:
        raise SystemExit(f"scores are {found:.1e} apart")
    return found


def quantiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{q}": float(np.quantile(seconds, q / 100)) for q in (50, 95)}


def figures(case: ranking_sides.Case, found: dict[str, Any]) -> dict[str, Any]:
    """`found` with users/s, and ratios to both ways of transformers, measured and by FLOPs."""
    users, seconds, flops = case.sizes.users, found["seconds"], found["flops_of_a_user"]
    peers = {"one_forward_each": flops["one_forward_each"], "shared_prefix": flops["joint"]}
    found["users_per_second"] = {
        form: users / seconds[form]
        for form in ("joint", "cached", "catalog", "shared_prefix", "one_forward_each")
    }
    found["ratio"], found["ratio_by_flops"] = (
        {
            f"{form} / {peer}": measured
            for form in ("joint", "cached")
            for peer, cost in peers.items()
            for measured in [
                seconds[peer] / seconds[form] if kind == "measured" else cost / flops[form]
            ]
        }
        for kind in ("measured", "by flops")
    )
    # The whole catalog costs a candidate less, as the prompt is read once for all items.
    for peer in peers:
        candidates = {peer: users * CANDIDATES / seconds[peer]}
        candidates["catalog"] = users * case.catalog / seconds["catalog"]
        found["ratio"][f"catalog / {peer}, candidates"] = candidates["catalog"] / candidates[peer]
    found["items_encoded_per_second"] = users * CANDIDATES / seconds["encode_items"]
    return found


def report(kind: str, case: ranking_sides.Case, found: dict[str, Any]) -> None:
    print(
        f"\n{kind}: {case.sizes.users} users, histories of {case.sizes.prefix} tokens, "
        f"candidates of {case.sizes.slots + case.sizes.words + case.sizes.tail}, "
        f"catalog of {case.catalog}"
    )
    for form, rate in found["users_per_second"].items():
        print(f"  {form:<18}{rate:9.3f} users/s")
    for name, ratio in found["ratio"].items():
        allowed = found["ratio_by_flops"].get(name)
        print(f"  {name:<46}{ratio:7.2f}" + (f"  (FLOPs: {allowed:.2f})" if allowed else ""))
    print(
        f"  one user, whole catalog: p50 {1e3 * found['latency']['p50']:.0f} ms, "
        f"p95 {1e3 * found['latency']['p95']:.0f} ms; scores at most "
        f"{max(found['apart'].values()):.0e} apart, deviation {found['deviation']:.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=KINDS, action="append", help="by default both")
    parser.add_argument("--users", type=int, default=2)
    parser.add_argument("--prefix", type=int, default=400, help="tokens of the longest history")
    parser.add_argument("--catalog", type=int, default=1000, help="items")
    parser.add_argument("--repeats", type=int, default=3, help="after one that is dropped")
    parser.add_argument("--threads", type=int, default=2, help="cores of each side, in turn")
    parser.add_argument("--out", type=Path, help="where to write the JSON too")
    asked = parser.parse_args()
    everything = {}
    with tempfile.TemporaryDirectory() as directory:
        writer = get_context("spawn").Process(target=ranking_sides.write, args=(directory,))
        writer.start()
        writer.join()
        for kind in asked.kind or KINDS:
            case = ranking_sides.Case(
                sizes(kind, asked.users, asked.prefix), asked.catalog, asked.threads
            )
            found = figures(case, measure(directory, case, asked.repeats))
            report(kind, case, found)
            everything[kind] = found
    line = json.dumps(everything)
    print(line)
    if asked.out:
        asked.out.write_text(line + "\n")


if __name__ == "__main__":
    main()
