"""Stage 3 of MMSRARec with cached items (*ours*, `models.late_interaction`): training, the catalog.

A candidate is one forward pass for all users, a user is one prompt for all candidates: the MLLM
ranks the whole catalog, and every item of a training batch is a negative for every user of it.
"""

import dataclasses
import functools
import time
from collections import Counter
from pathlib import Path

import numpy as np
from absl import logging

from mmsrec_jax.data import splits
from mmsrec_jax.evaluation import metrics, ranking
from mmsrec_jax.evaluation.fusion import Fused, fit
from mmsrec_jax.evaluation.leaderboard import Leaderboard
from mmsrec_jax.inference.cached_catalog import CachedCatalog
from mmsrec_jax.inputs.pairs import PairBatches, PairPrompts, PairRoom, dataset
from mmsrec_jax.inputs.recommend import PromptContext
from mmsrec_jax.methods.counts import log_counts
from mmsrec_jax.methods.mllm import Context, MLLMExperiment
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import sharding
from mmsrec_jax.training import pairs, sft


class CachedItems:
    """The cached form in one run.

    Args:
      step: that trains it.
      context: what prompts of given rows know.

    Attributes:
      kind: of the prompts.
    """

    kind: type[PairPrompts] = PairPrompts

    def __init__(self, run: MLLMExperiment, step: str, context: Context):
        self._run, self._step, self._context = run, step, context
        self._settings = run.config.cached

    def train(self, directory: Path) -> None:
        """Trains, selects on validation, and leaves the weights in `directory`."""
        run, c = self._run, self._settings
        if not run.config.use.multitask:
            c = dataclasses.replace(
                c, align=0.0, next_keywords=0.0, next_in_history=0.0, close_in_history=0.0
            )
        if not run.config.use.summaries:  # there is nothing to align, as in the joint form
            c = dataclasses.replace(c, align=0.0)
        run.base.check(self._step, has_images=bool(run.dataset.catalog.has_image.any()))
        counts: Counter[str] = Counter()
        prompts = self.training_prompts()
        shard, shards = sharding.process_batch_shard(run.mesh)
        batches = PairBatches(
            prompts,
            steps=c.steps,
            users=c.num_users,
            items=c.num_items,
            align=c.align,
            seed=c.seed,
            shard=shard,
            shards=shards,
        )
        model = pairs.train(
            c,
            run.base.to_train(self._step),
            dataset(batches, c.workers, counts),
            prompts.tail,
            name=self._step,
            directory=directory,
            mesh=run.mesh,
            yes_no_ids=run.prompt_config.chat.yes_no_ids,
            validate=self._validate,
            profile=run.profile,
        )
        log_counts(self._step, counts, run.mesh)
        run.base.save(self._step, model)

    def prompts(self, rows: np.ndarray) -> PairPrompts:
        """Of targets int32[n, 2] (user, position) that are scored."""
        return self.made(self._context(rows), rows)

    def training_prompts(self) -> PairPrompts:
        """Of the targets that are trained on."""
        return self.prompts(self.chosen(self._run.training_targets()))

    def chosen(self, targets: np.ndarray) -> np.ndarray:
        """Those of targets int32[n, 2] that this form trains on: see `each_user_once`."""
        return splits.last_of_each_user(targets) if self._settings.each_user_once else targets

    def made(self, context: PromptContext, rows: np.ndarray) -> PairPrompts:
        """Prompts that know `context`, which is of the same rows."""
        run, c = self._run, self._settings
        room = PairRoom(
            prompt=c.prompt_length,
            item=c.item_length,
            patches=run.image_room(c.item_patches),
            tail=c.tail,
            words=c.words_length,
        )
        return self.kind(
            context,
            run.prompt_config,
            rows,
            room=room,
            history=run.config.prompts.history,
            similar=run.config.prompts.similar,
            history_end=c.history_end,
        )

    def catalog(self, name: str, model: MLLM, prompts: PairPrompts) -> CachedCatalog:
        """All items encoded by `model`, to be scored for the rows of `prompts`."""
        run, c = self._run, self._settings
        return CachedCatalog(
            name,
            model,
            prompts,
            score_users=c.score_users,
            score_items=min(c.score_items, len(prompts.renderer)),
            yes_no_ids=run.prompt_config.chat.yes_no_ids,
            closeness=c.closeness,
            mesh=run.mesh,
        )

    def add_rows(self, board: Leaderboard, name: str) -> None:
        """The trained model in the table, under every protocol; and fused, if that is asked for."""

        @functools.cache
        def trained() -> tuple[CachedCatalog, PairPrompts]:
            prompts = self.prompts(board.targets)
            model = self._run.base.trained(name, self._step)
            began = time.monotonic()
            found = self.catalog(name, model, prompts)
            logging.info(
                "%s: %d items encoded in %.1f s, %.3g GiB of keys and values",
                name, found.num_items, time.monotonic() - began, found.nbytes() / 2**30,
            )  # fmt: skip
            return found, prompts

        board.add_in_one_pass(name, lambda: trained()[0])
        if self._run.config.evaluation.fuse:
            fused = f"{name}+{self._run.config.sequential_model}"
            board.add_in_one_pass(fused, lambda: self.fused(fused, *trained()))
        if trained.cache_info().currsize:  # the table was not there yet
            log_counts(f"score {name}", trained()[0].counts, self._run.mesh)

    def fused(self, name: str, catalog: CachedCatalog, prompts: PairPrompts) -> Fused:
        """The model's score and the sequential one's, weighed as fitted on validation targets."""
        run, histories = self._run, self._run.dataset.histories
        recommender, rows = run.recommender(), self._validation.rows
        of_validation = catalog.for_prompts(self._validation)
        weights = fit(of_validation, recommender, histories, rows)
        logging.info(
            "%s: %.4g x own score + %.4g x score of %s, fitted on %d validation targets",
            name, *weights, recommender.name, len(rows),
        )  # fmt: skip
        return Fused(name, catalog, recommender, histories, prompts.rows, weights)

    @functools.cached_property
    def _validation(self) -> PairPrompts:
        split, c = self._run.dataset.split, self._settings
        return self.prompts(splits.subset(split.validation, c.validation_rows, c.seed))

    def _validate(self, model: MLLM) -> dict[str, float]:
        prompts = self._validation
        found = ranking.full(
            self.catalog("validation", model, prompts),
            self._run.dataset.histories,
            prompts.rows,
            progress=False,
        )
        ranks = found.ranks.astype(np.int64)
        return {
            sft.SELECTED_BY: metrics.ndcg(ranks, 10),
            "validation/recall@10": metrics.hit_rate(ranks, 10),
        }
