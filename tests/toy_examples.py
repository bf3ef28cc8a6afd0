"""Recommendation sources over the toy items, and examples read back."""

import re

import numpy as np
import toy_items

from mmsrec_jax.inputs.recommend import PromptContext, RecommendSource

HISTORIES = toy_items.histories()
ROWS = toy_items.train_rows(HISTORIES)
TRAIN_END = HISTORIES.lengths - 1
NEIGHBORS = np.random.default_rng(1).integers(-1, 24, (len(ROWS), 4)).astype(np.int32)
KEYWORDS = toy_items.keywords()
CATALOG = toy_items.catalog()
ARRAYS = ("tokens", "loss_weights", "suffix_ids", "positions", "answer_positions", "labels")


def context(**changes):
    given = dict(keywords=KEYWORDS, neighbors=NEIGHBORS, train_end=TRAIN_END) | changes
    return PromptContext(CATALOG, HISTORIES, **given)


def recommend(prompt_config, tasks, known=None, **options):
    options = dict(length=1000, seed=0, tasks=tasks, negatives=4) | options
    return RecommendSource(known or context(), prompt_config, ROWS, **options)


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS)


def candidates_of(trained, example):
    """Item numbers of the candidates, read from their titles in the suffixes."""
    found = []
    for c in range(1, example.suffix_ids.max() + 1):
        text = trained.decode(example.tokens[example.suffix_ids == c])
        found.append(int(re.search(r"number (\d+)", text)[1]))
    return found


def answer_of(trained, example):
    """Prompt and answer as text; everything with weight is the end of the example."""
    weighted = np.flatnonzero(example.loss_weights)
    assert weighted.tolist() == list(range(weighted[0], len(example)))
    assert set(example.loss_weights[weighted]) == {1.0}
    return trained.decode(example.tokens[: weighted[0]]), trained.decode(example.tokens[weighted])
