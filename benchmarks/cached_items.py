"""Pairs of users and items a second: the joint form, cached items and vectors alone, one model.

    python benchmarks/cached_items.py --workdir=runs/quickstart

Reads a finished run whose forms hold `cached`. The same weights score lists of 1 + 20 candidates in
the joint form, and the whole catalog from stored items, whose last token meets every user
("cached") or which are one vector each ("vectors"). Each is timed once everything is compiled.
That cached scores equal one forward pass a pair under their mask is tested in
tests/models/test_late_interaction.py. Prints one line of JSON.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmsrec_jax.evaluation import protocols
from mmsrec_jax.inference.scoring import candidate_scores
from mmsrec_jax.methods import recorded
from mmsrec_jax.methods.mmsrarec import MMSRARec
from mmsrec_jax.runtime import arrays, sharding


def seconds(work: Callable[[], object]) -> float:
    """Of the second call."""
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True, help="of a finished run")
    parser.add_argument("--users", type=int, default=64, help="test users that are scored")
    asked = parser.parse_args()
    mesh, config = sharding.make_mesh(), recorded.settings(asked.workdir)
    run = MMSRARec(config, asked.workdir, mesh)
    catalog, histories, _ = run.dataset
    c = run.config.evaluation
    rows = run.test_targets()[: asked.users]
    lists = protocols.sampled(
        histories, rows, n=c.negatives[0], seed=c.seed, num_items=len(catalog)
    ).items
    model = run.base.trained("mmsrarec", "cached")
    source = run.candidate_source(run.context(rows), rows, lists)
    longest = max(len(source.example(row, 0)) for row in range(len(rows)))
    # No more room than these lists need: padding would count against the joint form.
    fitting = dataclasses.replace(c, length=-(-longest // 16) * 16)
    source = MMSRARec(
        dataclasses.replace(config, evaluation=fitting), asked.workdir, mesh
    ).candidate_source(run.context(rows), rows, lists)

    def joint() -> np.ndarray:
        return candidate_scores(
            model,
            source,
            name="joint",
            num_candidates=lists.shape[1],
            batch_size=c.batch_size,
            patches=run.image_room(c.patches),
            workers=0,
            yes_no_ids=run.prompt_config.chat.yes_no_ids,
            mesh=mesh,
        )

    of_joint = seconds(joint)
    found: dict[str, float] = {
        "users": len(rows),
        "items": len(catalog),
        "joint_pairs_per_second": round(lists.size / of_joint),
        "joint_users_per_second": round(len(rows) / of_joint, 2),
    }
    for form, tail in (("cached", 1), ("vectors", 0)):
        fitting = dataclasses.replace(config.cached, tail=tail)
        run = MMSRARec(dataclasses.replace(config, cached=fitting), asked.workdir, mesh)
        items = run.cached_items()
        prompts = items.prompts(rows)
        encoded = items.catalog(form, model, prompts)
        began = time.perf_counter()
        encoded = items.catalog(form, model, prompts)
        encoding = time.perf_counter() - began
        took = seconds(lambda: arrays.fetch(encoded.row_scores(np.arange(len(rows)))))  # noqa: B023
        pairs = len(rows) * len(catalog) / took
        found |= {
            f"{form}_pairs_per_second": round(pairs),
            f"{form}_ratio": round(pairs / (lists.size / of_joint), 1),
            f"{form}_users_per_second_full_catalog": round(len(rows) / took, 2),
            f"{form}_encode_items_seconds": round(encoding, 2),
            f"{form}_stored_gib": round(encoded.nbytes() / 2**30, 4),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
