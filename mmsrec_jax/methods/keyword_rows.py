"""The rows `keyword_overlap` and `keyword_logit` of a run: what its prompts list, matched by words.

Both read what the prompts show of items in lists: the keywords of step `summaries`, or the text
without them, and the neighbors of step `retrieval`, as many of each as the config says. A prompt
that is too long for its room leaves items out; these rows do not.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from mmsrec_jax.data import splits
from mmsrec_jax.data.records import Dataset
from mmsrec_jax.evaluation import keywords
from mmsrec_jax.evaluation.keywords import KeywordScorer
from mmsrec_jax.inputs.item_renderer import ItemRenderer, PromptConfig
from mmsrec_jax.inputs.recommend import PromptContext
from mmsrec_jax.methods.settings import Settings

_LISTS = 10_000  # validation lists; more do not move so few weights
_WORD = re.compile(r"\w+")


def words(context: PromptContext, prompt_config: PromptConfig) -> list[set[str]]:
    """What a prompt's list says of every item, in lower case: its keywords, else the words of its
    text."""
    renderer = ItemRenderer(context.catalog, prompt_config, context.keywords)
    found = []
    for item in range(len(renderer)):
        written = "" if context.keywords is None else context.keywords[item]
        if written.strip():
            parts: Sequence[str] = [part.strip() for part in written.lower().split(",")]
        else:
            parts = _WORD.findall(renderer.words(item).lower())
        found.append(set(filter(None, parts)))
    return found


def scorers(
    config: Settings,
    dataset: Dataset,
    prompt_config: PromptConfig,
    context: Callable[[np.ndarray], PromptContext],
    targets: np.ndarray,
) -> list[KeywordScorer]:
    """Both systems for these test targets, int32[n, 2] (user, position).

    context: what is known for prompts of given rows; of validation targets too, on which the
    weights of `keyword_logit` are fitted.
    """
    histories, prompts, c = dataset.histories, config.prompts, config.evaluation
    known = context(targets)
    incidence = keywords.incidence(words(known, prompt_config))

    def places(rows: np.ndarray, neighbors: np.ndarray | None) -> np.ndarray:
        neighbors = None if neighbors is None else neighbors[:, : prompts.similar]
        return keywords.places(histories, rows, history=prompts.history, neighbors=neighbors)

    def with_told(rows: np.ndarray, listed: np.ndarray) -> np.ndarray:
        told = keywords.told(
            histories, rows, history=prompts.history,
            ratings=prompt_config.ratings, pauses=prompt_config.pauses,
        )  # fmt: skip
        return np.concatenate([listed, told], axis=1)

    listed = places(targets, known.neighbors)
    decaying = keywords.decaying(prompts.history, listed.shape[1] - prompts.history)
    rows = splits.subset(dataset.split.validation, _LISTS, c.seed)
    weights = keywords.fitted(
        incidence,
        histories,
        rows,
        with_told(rows, places(rows, context(rows).neighbors)),
        negatives=c.negatives[0],
        seed=c.seed,
    )
    parts = np.split(weights, [prompts.history, listed.shape[1]])
    logging.info(
        "keyword_logit: weights of the last items %s, of similar users' %s, more by ratings and "
        "pauses %s; %d validation lists",
        *(np.round(part, 3).tolist() for part in parts), len(rows),
    )  # fmt: skip
    return [
        KeywordScorer("keyword_overlap", incidence, listed, decaying),
        KeywordScorer("keyword_logit", incidence, with_told(targets, listed), weights),
    ]
