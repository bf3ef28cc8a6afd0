"""Candidates for a history that someone typed, scored by the MMSRARec model of a finished run."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmsrec_jax.data.build import DataSettings
from mmsrec_jax.data.records import Catalog, Histories
from mmsrec_jax.data.sequences import power_of_two
from mmsrec_jax.evaluation.settings import EvaluationSettings
from mmsrec_jax.hf.loading import ModelSettings
from mmsrec_jax.inference.scoring import candidate_scores
from mmsrec_jax.inputs.recommend import PromptContext
from mmsrec_jax.methods.mmsrarec import MMSRARec
from mmsrec_jax.methods.settings import Settings, UseSettings
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.prompts.settings import PromptSettings
from mmsrec_jax.retrieval import similar
from mmsrec_jax.retrieval.similar import KnowledgeBase, RetrievalSettings
from mmsrec_jax.runtime import sharding, workdir
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import S, from_record
from mmsrec_jax.sequential import registry
from mmsrec_jax.sequential.recommender import SequentialRecommender
from mmsrec_jax.training.sft import SFTSettings, WarmupSettings

_SFT_READS = ("data", "model", "warmup", "summaries", "retrieval")


class Scorer:
    """The MMSRARec model of a finished run; weights and the knowledge base stay in memory.

    Attributes:
      catalog, histories: of the run. Ids are those of the raw files.

    Raises:
      UserError: the run has not finished, or an input of its step `sft` has run again since.
    """

    def __init__(self, folder: str | Path, mesh: jax.sharding.Mesh | None = None):
        """folder: the run's workdir; mesh: None takes all devices."""
        folder = Path(folder)
        config = _recorded_settings(folder)
        self._mesh = sharding.make_mesh() if mesh is None else mesh
        self._run = MMSRARec(config, folder, self._mesh)
        self.catalog: Catalog
        self.histories: Histories
        self.catalog, self.histories, self._split = self._run.dataset
        self._keywords = self._run.keywords() if config.use.summaries else None
        self._user_index = {user: u for u, user in enumerate(self.histories.users.tolist())}

    def scores(
        self,
        history: Sequence[str],
        candidates: Sequence[str],
        *,
        times: Sequence[float] | None = None,
        user: str | None = None,
        before: float | None = None,
    ) -> np.ndarray:
        """logit(yes) - logit(no) of each candidate: float32[candidates].

        When the run used retrieval, users similar to this history are looked up as for a test
        target. For the history of a test user, with `user` given and under a global-time split
        `before` the time of the target, the scores are those of step `evaluation`.

        Args:
          history: raw item ids, oldest first, at least one.
          candidates: raw item ids. Lists longer than those of `evaluation` are scored in parts.
          times: seconds since 1970 of the history's items; only a sequential recommender that
            reads the clock needs them.
          user: raw id of the user whose history it is, who is then not similar to themselves; None
            for a history of nobody in the data.
          before: seconds since 1970; what users took from then on is not known. None: all is.

        Raises:
          UserError: an id that the run does not know, an empty history or list, or times that are
            missing or not as many as items.
        """
        past = item_indices(self.catalog, history, "history")
        wanted = item_indices(self.catalog, candidates, "candidates")
        if user is not None and user not in self._user_index:
            raise UserError(f"user {user!r} is not in the data of this run; leave user out")
        typed = Histories(
            users=np.array(["" if user is None else user]),
            offsets=np.array([0, len(past)]),
            items=past,
            timestamps=self._clock(times, len(past)),
            clock=self.histories.clock,
        )
        neighbors = None
        if self._run.config.use.retrieval:
            neighbors = self._neighbors(typed, self._user_index.get(user, -1), before)
        return self._scored(typed, wanted, neighbors)

    def _scored(
        self, typed: Histories, wanted: np.ndarray, neighbors: np.ndarray | None
    ) -> np.ndarray:
        run, c = self._run, self._run.config.evaluation
        width = 1 + c.negatives
        count = -(-len(wanted) // width)
        lists = np.full((count, width), -1, np.int32)
        lists.ravel()[: len(wanted)] = wanted
        if neighbors is not None:
            neighbors = np.repeat(neighbors, count, axis=0)
        context = PromptContext(self.catalog, typed, self._keywords, neighbors)
        rows = np.tile(np.array([[0, len(typed.items)]], np.int32), (count, 1))
        shards = sharding.num_batch_shards(self._mesh)
        batch_size = min(shards * power_of_two(-(-count // shards)), max(c.batch_size, shards))
        found = candidate_scores(
            self._model,
            run.candidate_source(context, rows, lists),
            name="candidates",
            num_candidates=width,
            batch_size=batch_size,
            patches=run.image_room(c.patches),
            workers=0,
            yes_no_ids=run.prompt_config.chat.yes_no_ids,
            mesh=self._mesh,
        )
        return found.ravel()[: len(wanted)]

    def _neighbors(self, typed: Histories, user: int, before: float | None) -> np.ndarray:
        """int32[1, k]: next items of the most similar users."""
        rows = np.array([[0, len(typed.items)]])
        found = similar.search(
            self._knowledge_base,
            similar.prefix_embeddings(self._recommender, typed, rows),
            np.array([user]),
            k=self._run.config.prompts.similar,
            before=None if before is None else np.array([before]),
            distinct_items=self._run.config.retrieval.distinct_items,
            mesh=self._mesh,
        )
        return found.items

    @functools.cached_property
    def _model(self) -> MLLM:
        return self._run.base.trained("mmsrarec", "sft")

    @functools.cached_property
    def _recommender(self) -> SequentialRecommender:
        return self._run.recommender()

    @functools.cached_property
    def _knowledge_base(self) -> KnowledgeBase:
        return similar.knowledge_base(self._recommender, self.histories, self._split)

    def _clock(self, times: Sequence[float] | None, count: int) -> np.ndarray:
        """float64[count]: `times`, or positions where nobody reads them."""
        if times is not None:
            if len(times) != count:
                raise UserError(f"{len(times)} times for {count} items of the history")
            return np.asarray(times, np.float64)
        needed = self._run.config.use.retrieval and self._recommender.uses_times
        if needed and self.histories.clock:
            raise UserError(
                f"{self._recommender.name} reads the clock: give times, seconds since 1970, one "
                "for each item of the history"
            )
        return np.arange(count, dtype=np.float64)


def item_indices(catalog: Catalog, ids: Sequence[str], what: str) -> np.ndarray:
    """int32[n]: where raw item ids stand in the catalog of a run; what: for errors.

    Raises:
      UserError: an id that the run does not know, or no id.
    """
    if not len(ids):
        raise UserError(f"{what} is empty; give one item id or more")
    unknown = [id for id in ids if id not in catalog.index]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(
            f"{what}: the run knows no item {unknown[0]!r}{more}; ids are those of the raw files, "
            f"such as {str(catalog.ids[0])!r}, as far as the run's filters keep them"
        )
    return np.array([catalog.index[id] for id in ids], np.int32)


def _recorded_settings(folder: Path) -> Settings:
    """The settings that the steps of a run recorded, as far as scoring reads them.

    Raises:
      UserError: a step has not finished, or recorded fields that this version does not have.
    """
    tuned = workdir.finished(folder, "sft", same=_SFT_READS)
    found = Settings(
        data=_recorded(DataSettings, workdir.finished(folder, "data"), "data"),
        model=_recorded(ModelSettings, tuned, "model"),
        use=_recorded(UseSettings, tuned, "use"),
        prompts=_recorded(PromptSettings, tuned, "prompts"),
        sft=_recorded(SFTSettings, tuned, "sft"),
        evaluation=_recorded(
            EvaluationSettings, workdir.finished(folder, "evaluation"), "evaluation"
        ),
    )
    if "warmup" in workdir.inputs(folder, "sft"):
        record = workdir.finished(folder, "warmup")
        found = dataclasses.replace(found, warmup=_recorded(WarmupSettings, record, "warmup"))
    if not found.use.retrieval:
        return found
    record = workdir.finished(folder, "retrieval")
    return dataclasses.replace(
        found,
        retrieval=_recorded(RetrievalSettings, record, "retrieval"),
        sequential_model=next(name for name in record if name in registry.MODELS),
    )


def _recorded(cls: type[S], record: Mapping[str, Any], section: str) -> S:
    try:
        return from_record(cls, record[section], f"config.{section}")
    except UserError as error:
        raise UserError(
            f"{error} (in the record of a step: another version wrote it; run launch/train.py with "
            "this --workdir again)"
        ) from error
