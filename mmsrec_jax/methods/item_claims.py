"""Step `claims`: how much of what the model wrote of items is true, and examples for people."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from mmsrec_jax.data import images
from mmsrec_jax.data.records import Catalog
from mmsrec_jax.evaluation.claims import SUPPORTED, Checker, Claim, shares, table
from mmsrec_jax.inputs.understanding import Answers
from mmsrec_jax.runtime.files import write_bytes, write_json, write_text


def write(
    directory: Path,
    shown: Catalog,
    checker: Checker,
    *,
    summaries: Sequence[str],
    answers: Sequence[Answers] | None,
    in_training: np.ndarray,
    examples: int,
    seed: int,
) -> None:
    """Checks every claim, and leaves in `directory`:

        claims.json      name of a set of texts -> `evaluation.claims.shares`
        claims.txt       the same as a table
        examples.jsonl   items, a line each: item, id, stated attributes, image (a path from here),
                         answers, summary and claims of the summary, each with its outcome
        images/          the images of these items

    The sets are all summaries; those of items with and without an image, and of items in training
    and new ones, where there are both; and the answers.

    Args:
      shown: the items with the images that the model saw.
      summaries, answers: of every item; answers are None in a mode that asks nothing.
      in_training: bool[items], whether a training interaction has the item.
      examples: how many, as far as there are as many half of them with a claim that is not
        supported; seed: of their choice.
    """
    numbers = range(len(shown))
    stated = [checker.stated(item) for item in numbers]
    claims = [checker.check(summaries[item], [item]) for item in numbers]
    sets = {"summaries": np.ones(len(shown), bool)}
    for mask, name, other in (
        (shown.has_image, "with image", "without image"),
        (in_training, "in training", "new"),
    ):
        if mask.any() and not mask.all():
            sets |= {name: mask, other: ~mask}
    parts = {
        name: shares([claims[i] for i in chosen], [stated[i] for i in chosen])
        for name, chosen in ((name, np.flatnonzero(mask)) for name, mask in sets.items())
    }
    if answers is not None:
        said = [", ".join(answer for _, answer in of_item) for of_item in answers]
        asked = np.flatnonzero(shown.has_image).tolist()
        parts["answers"] = shares(
            [checker.check(said[item], [item]) for item in asked],
            [stated[item] for item in asked],
        )
    write_json(directory / "claims.json", parts)
    write_text(directory / "claims.txt", table(parts))
    for row in table(parts).splitlines():
        logging.info("claims: %s", row)
    lines = []
    for item in _chosen(claims, examples, seed):
        kept = {
            "item": item,
            "id": str(shown.ids[item]),
            "stated": shown[item].attributes,
            "image": _picture(directory, shown, item),
            "answers": [] if answers is None else [list(pair) for pair in answers[item]],
            "summary": summaries[item],
            "claims": [dataclasses.asdict(claim) for claim in claims[item]],
        }
        lines.append(json.dumps(kept) + "\n")
    write_text(directory / "examples.jsonl", "".join(lines))


def _chosen(claims: Sequence[Sequence[Claim]], count: int, seed: int) -> list[int]:
    wrong = np.array([any(c.outcome != SUPPORTED for c in of_item) for of_item in claims])
    order = np.random.default_rng(seed).permutation(len(claims))
    of_wrong, of_right = order[wrong[order]], order[~wrong[order]]
    first = of_wrong[: max(count // 2, count - len(of_right))]
    return sorted([*first.tolist(), *of_right[: count - len(first)].tolist()])


def _picture(directory: Path, shown: Catalog, item: int) -> str | None:
    """Writes the image of an item and returns its path from `directory`."""
    encoded = shown[item].image
    if encoded is None:
        return None
    name = f"images/{item}{images.suffix(encoded)}"
    write_bytes(directory / name, encoded)
    return name
