"""What each way to rank costs in a finished run, and how well it ranks: one table.

    python launch/train.py --config=configs/quickstart.py:full --workdir=runs/quickstart-full
    python benchmarks/forms.py --workdir=runs/quickstart-full

One row for the sequential recommender and one for each form of stage 3 that the run trained.

    FLOPs      of one request, counted from the config as models/flops.py does: the user's prompt
               and each candidate that is read after it. Items that are encoded once are not in it.
    ms p50/p95 of one request, alone on the devices: similar users, prompt, scores and the best ten.
               The joint form reorders the items that the sequential recommender ranks first.
               Pictures of these are read and, the first time, written to the run's folder.
    accuracy   of the run's table.json; sampled: by its first number of negatives.

Requests are those of `--users` test users, everything compiled before. Prints the table, then one
line of JSON.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmsrec_jax.evaluation import protocols
from mmsrec_jax.methods import recorded
from mmsrec_jax.methods.mmsrarec import STEP_OF_FORM, MMSRARec
from mmsrec_jax.methods.recommending import RERANKED, Recommending
from mmsrec_jax.methods.scorer import Scorer
from mmsrec_jax.models import flops
from mmsrec_jax.models.config import MLLMConfig
from mmsrec_jax.runtime import sharding

_WARM = 3  # requests before those that are timed: programs of a few shapes
_COLUMNS = (
    "system", "scored", "flops", "ms_p50", "ms_p95", "hr@5 sampled", "ndcg@10 full catalog",
)  # fmt: skip


def latency(ask: Callable[[int], object], users: int) -> dict[str, float]:
    """Milliseconds of one call; `ask` gets the number of a user."""
    for user in range(_WARM):
        ask(user)
    took = []
    for user in range(_WARM, _WARM + users):
        began = time.perf_counter()
        ask(user)
        took.append(1000 * (time.perf_counter() - began))
    return {"ms_p50": float(np.percentile(took, 50)), "ms_p95": float(np.percentile(took, 95))}


def total(parts: Mapping[str, float]) -> float:
    return float(sum(parts.values()))


def joint_flops(
    run: MMSRARec, config: MLLMConfig, rows: np.ndarray, lists: np.ndarray, scored: int
) -> float:
    """Of a prompt and `scored` candidates after it, mean of the rows."""
    source = run.candidate_source(run.context(rows), rows, lists)
    found = []
    for row in range(len(rows)):
        example = source.example(row, 0)
        sizes = np.bincount(example.suffix_ids)
        prompt, candidate = float(sizes[0]), float(sizes[1:].mean())
        shown = [tuple(image["grid"]) for image in example.images[:1]]
        after = total(flops.read(config, candidate, prompt, shown))
        found.append(total(flops.read(config, prompt, 0)) + scored * after)
    return float(np.mean(found))


def cached_flops(run: MMSRARec, config: MLLMConfig, rows: np.ndarray) -> float:
    """Of a prompt, its tails and the cosines with all items, mean of the rows."""
    prompts, items = run.cached_items().prompts(rows), len(run.dataset.catalog)
    batch = prompts.users(range(len(rows)), Counter())
    length = float(np.mean(np.sum(batch.segment_ids > 0, axis=1)))
    room, tail = run.config.cached.item_length, len(prompts.tail)
    of_items = items * 2 * config.text.hidden
    if tail:
        of_items += items * total(flops.read(config, tail, length + room))
    return total(flops.read(config, length, 0)) + of_items


def accuracy(
    table: Sequence[dict[str, Any]], system: str, protocol: str
) -> dict[str, float | None]:
    """In the whole catalog, and by a protocol of sampled candidates; None where the run has no such
    row."""
    found = {(row["system"], row["protocol"]): row for row in table}
    return {
        "hr@5 sampled": found.get((system, protocol), {}).get("hr@5"),
        "ndcg@10 full catalog": found.get((system, "full"), {}).get("ndcg@10"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True, help="of a finished run")
    parser.add_argument("--users", type=int, default=100, help="requests that are timed")
    asked = parser.parse_args()
    mesh = sharding.make_mesh()
    table = json.loads((asked.workdir / "table.json").read_text())
    names = recorded.forms(asked.workdir)
    scorer = Scorer(asked.workdir, mesh)
    histories, protocol = scorer.histories, f"sampled@{scorer.config.evaluation.negatives[0]}"
    rows = MMSRARec(scorer.config, asked.workdir, mesh).test_targets()[: asked.users + _WARM]
    users, timed = [str(histories.users[user]) for user, _ in rows], len(rows) - _WARM

    def sequential(at: int) -> np.ndarray:
        past, times = (x(int(rows[at][0]))[None] for x in (histories.of, histories.times))
        return np.argsort(-np.asarray(scorer.recommender.scores(past, times))[0])[:10]

    recommender = scorer.recommender.name
    found: list[dict[str, Any]] = [
        {"system": recommender, "scored": len(scorer.catalog), "flops": None}
        | latency(sequential, timed)
        | accuracy(table, recommender, protocol)
    ]
    for form in names:
        config = recorded.settings(asked.workdir, form)
        run = MMSRARec(config, asked.workdir, mesh)
        shape = run.base.trained("shape", STEP_OF_FORM[form]).config
        name = "mmsrarec" if form == names[0] else f"mmsrarec/{form}"
        answering = Recommending(asked.workdir, mesh, form)

        def recommend(at: int, answering: Recommending = answering) -> object:
            return answering.recommend(user=users[at])

        row = {"system": name, **accuracy(table, name, protocol), **latency(recommend, timed)}
        if form == "cached":
            row |= {"scored": len(scorer.catalog), "flops": cached_flops(run, shape, rows)}
        else:
            c = config.evaluation
            lists = protocols.sampled(
                histories, rows, n=c.negatives[0], seed=c.seed, num_items=len(scorer.catalog)
            ).items
            depth = c.rerank or RERANKED
            row |= {"scored": depth, "flops": joint_flops(run, shape, rows, lists, depth)}
        found.append(row)
    for row in [dict(zip(_COLUMNS, _COLUMNS, strict=True)), *found]:
        cells = ("-" if row[name] is None else row[name] for name in _COLUMNS)
        print("  ".join(f"{x:>14.4g}" if isinstance(x, float) else f"{x:>14}" for x in cells))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
