"""The row `mmsrarec/generate`: the MLLM writes the next item's keywords, of items of the catalog
only, and items are ranked by the probability of theirs (*ours*)."""

import functools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import logging

from mmsrec_jax.data import sequences
from mmsrec_jax.evaluation import ranking
from mmsrec_jax.evaluation.leaderboard import Leaderboard
from mmsrec_jax.evaluation.metrics import Ranks
from mmsrec_jax.inference import beam
from mmsrec_jax.inference.trie import CatalogTrie
from mmsrec_jax.inputs.recommend import NextKeywordsSource, PromptContext, keywords_answers
from mmsrec_jax.methods.mllm import MLLMExperiment
from mmsrec_jax.runtime.files import write_json
from mmsrec_jax.runtime.progress import track

NAME = "mmsrarec/generate"
_ROUND = 16  # prompts are padded to a multiple of it


class Generator:
    """Scores of the catalog for given targets, by the weights of a step; a `RowSystem`.

    The items found in a beam search of `config.evaluation.generate` beams have the log-probability
    of their keywords, equal keywords the same. Those that it did not find have -inf: a target among
    them ranks behind all others that compete (rank = number of competing items).

    Args:
      step: whose weights.
      context: what is known for prompts of given rows.
      rows: int32[n, 2] (user, position), those that are ranked. What the user had before takes no
        room in the search, unless it is the target.
    """

    def __init__(
        self,
        run: MLLMExperiment,
        step: str,
        context: Callable[[np.ndarray], PromptContext],
        rows: np.ndarray,
        *,
        name: str = NAME,
    ):
        self.name = name
        self._run, self._step, self._rows = run, step, rows
        self._context = context(rows)
        self._trie = CatalogTrie.build(keywords_answers(self._context, run.prompt_config))
        self._texts, self._text_of_item = np.unique(self._trie.leaf_of_item, return_inverse=True)

    def row_scores(self, at: np.ndarray) -> np.ndarray:
        """float32[B, items] of the rows with these numbers."""
        leaves, scores = (x[at] for x in self.found)
        by_text = np.full((len(at), len(self._texts)), -np.inf, np.float32)
        row, place = np.nonzero(leaves >= 0)
        texts = np.searchsorted(self._texts, leaves[row, place])
        by_text[row, texts] = scores[row, place]
        return by_text[:, self._text_of_item]

    @functools.cached_property
    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """(leaves int32[n, W], scores float32[n, W]) of all rows, see `beam.Found`."""
        run, c = self._run, self._run.config
        width = c.evaluation.generate
        source = NextKeywordsSource(
            self._context,
            run.prompt_config,
            self._rows,
            length=c.sft.length,
            answer=self._trie.depth,
            history=c.prompts.history,
            similar=c.prompts.similar,
        )
        numbers = track(range(len(source)), f"{self.name}: prompts", len(source), "users")
        longest = max(len(source.example(row, row)) for row in numbers)
        leaves = np.full((len(source), width), -1, np.int32)
        scores = np.full((len(source), width), -np.inf, np.float32)
        for index, *values in beam.search_rows(
            run.base.trained(self.name, self._step),
            source,
            self._trie,
            name=self.name,
            width=width,
            batch_size=c.evaluation.batch_size,
            length=-(-longest // _ROUND) * _ROUND,
            workers=c.evaluation.workers,
            mesh=run.mesh,
            left_out=self._left_out(),
        ):
            leaves[index], scores[index] = values
        return leaves, scores

    def _left_out(self) -> np.ndarray:
        """int32[n, H]: leaves all of whose items the user had before and are not the target; -1
        fills up."""
        histories, leaf_of_item = self._context.histories, self._trie.leaf_of_item
        sharing = np.bincount(leaf_of_item)
        lists = []
        for (user, position), target in zip(
            self._rows, sequences.targets(histories, self._rows), strict=True
        ):
            seen = np.setdiff1d(histories.of(user)[:position], target)
            leaves, counts = np.unique(leaf_of_item[seen], return_counts=True)
            lists.append(leaves[counts == sharing[leaves]])
        found = np.full((len(lists), max(map(len, lists), default=0)), -1, np.int32)
        for row, leaves in enumerate(lists):
            found[row, : len(leaves)] = leaves
        return found


def add(
    board: Leaderboard,
    run: MLLMExperiment,
    context: Callable[[np.ndarray], PromptContext],
    directory: Path,
) -> None:
    """The row under the protocol `full`, and in `generate.json` of `directory` what it cost: users,
    width, seconds (with loading and compiling), users_per_second."""

    def rank() -> Ranks:
        rows, began = run.test_targets(), time.monotonic()
        system = Generator(run, "sft", context, rows)
        ranks = ranking.full(system, run.dataset.histories, rows, top=max(run.config.evaluation.k))
        seconds = time.monotonic() - began
        rate = len(rows) / seconds
        logging.info("%s: %.3g users/s with loading and compiling", NAME, rate)
        cost = {"users": len(rows), "width": run.config.evaluation.generate, "seconds": seconds}
        write_json(directory / "generate.json", cost | {"users_per_second": rate})
        return ranks

    board.add_full_ranks(NAME, rank)
