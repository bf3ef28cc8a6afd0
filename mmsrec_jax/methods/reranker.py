"""Full-catalog rows of the MLLMs: they reorder the first items of the run's sequential model."""

import functools
import time
from pathlib import Path

import numpy as np
from absl import logging

from mmsrec_jax.data import splits
from mmsrec_jax.evaluation import ranking, reranking
from mmsrec_jax.evaluation.metrics import Ranks
from mmsrec_jax.methods.mllm import Context, MLLMExperiment
from mmsrec_jax.runtime.files import write_json


class Reranker:
    """The first `config.evaluation.rerank` items of the sequential model, scored by MLLMs.

    Of every system that has been scored, `rerank-SYSTEM.json` in `directory` says how long the test
    users took, with loading and compiling: users, items (a user), seconds, users_per_second.
    """

    def __init__(self, run: MLLMExperiment, directory: Path):
        c = run.config.evaluation
        self._run, self._directory, self._top = run, directory, max(c.k)
        self._depth = min(c.rerank, len(run.dataset.catalog))
        self._recommender = run.recommender()
        self._margins: dict[str, np.ndarray] = {}

    def ranks(self, name: str, step: str, context: Context) -> Ranks:
        """Of the MLLM that `step` trained, called `name`."""
        margins = self._test_margins(name, step, context)
        return reranking.rerank(name, self._first, margins, top=self._top)

    def fused(self, name: str, of: str, step: str, context: Context) -> Ranks:
        """By margin and score of the sequential model, weighed as fitted on validation targets.

        As many validation targets are drawn as there are test targets. Those that are not among the
        first items say nothing and are not scored.

        Args:
          name: of the row.
          of: name of the MLLM that `step` trained.
        """
        run, c = self._run, self._run.config.evaluation
        rows = splits.subset(run.dataset.split.validation, len(run.test_targets()), c.seed)
        first = self._retrieve(rows)
        inside = np.flatnonzero(first.ranks <= self._depth)
        first, rows = first.select(inside), rows[inside]
        listed = first.top[:, : self._depth]
        model = run.base.trained(of, step)
        margins = run.score_lists(f"{of} on validation", model, context, rows, listed)
        weights = reranking.fit_fusion(margins, self._scores(rows, listed), first)
        logging.info(
            "%s: %.4g x margin + %.4g x score of %s, fitted on %d validation lists",
            name, *weights, self._recommender.name, len(rows),
        )  # fmt: skip
        margins = self._test_margins(of, step, context)
        scores = self._scores(run.test_targets(), self._first.top[:, : self._depth])
        fused = weights[0] * margins + weights[1] * scores
        return reranking.rerank(name, self._first, fused, top=self._top)

    @functools.cached_property
    def _first(self) -> Ranks:
        return self._retrieve(self._run.test_targets())

    def _retrieve(self, rows: np.ndarray) -> Ranks:
        histories = self._run.dataset.histories
        top = max(self._depth, self._top)
        return ranking.full(self._recommender, histories, rows, top=top)

    def _scores(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        histories = self._run.dataset.histories
        return reranking.scores_of(self._recommender, histories, rows, items)

    def _test_margins(self, name: str, step: str, context: Context) -> np.ndarray:
        """float32[n, K], of every system once."""
        if name in self._margins:
            return self._margins[name]
        rows, listed = self._run.test_targets(), self._first.top[:, : self._depth]
        began = time.monotonic()
        self._margins[name] = self._run.score_lists(
            f"{name} reranking", self._run.base.trained(name, step), context, rows, listed
        )
        seconds = time.monotonic() - began
        rate = len(rows) / seconds
        logging.info(
            "rerank %s: the first %d items of %s for %d users, %.3g users/s with loading and "
            "compiling", name, self._depth, self._recommender.name, len(rows), rate,
        )  # fmt: skip
        cost = {"users": len(rows), "items": self._depth, "seconds": seconds}
        write_json(
            self._directory / f"rerank-{name.replace('/', '.')}.json",
            cost | {"users_per_second": rate},
        )
        return self._margins[name]
