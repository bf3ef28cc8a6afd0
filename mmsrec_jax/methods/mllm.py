"""What the methods that train an MLLM share: the base model, fine-tuning on a source, candidates
scored by what was trained."""

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import logging

from mmsrec_jax.data import build, splits
from mmsrec_jax.evaluation import metrics, protocols, ranking
from mmsrec_jax.evaluation.leaderboard import Leaderboard
from mmsrec_jax.evaluation.protocols import Candidates
from mmsrec_jax.evaluation.ranking import RowSystem, System
from mmsrec_jax.hf import tiny_init
from mmsrec_jax.inference.scoring import candidate_scores
from mmsrec_jax.inputs import pipeline
from mmsrec_jax.inputs.pipeline import Source
from mmsrec_jax.inputs.recommend import (
    CandidateSource,
    PromptContext,
    RecommendSource,
    UserPrompts,
)
from mmsrec_jax.inputs.sharded import Sharded
from mmsrec_jax.inputs.warmup import ASKING, WarmupSource, lacking
from mmsrec_jax.methods import keyword_rows
from mmsrec_jax.methods.base_model import MODEL, SECTIONS, WARMUP
from mmsrec_jax.methods.counts import log_counts
from mmsrec_jax.methods.experiment import Experiment
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.prompts import TEMPLATES, corpus
from mmsrec_jax.runtime.progress import track
from mmsrec_jax.runtime.settings import as_dict
from mmsrec_jax.runtime.sharding import process_batch_shard
from mmsrec_jax.runtime.workdir import Step
from mmsrec_jax.training import sft

Context = Callable[[np.ndarray], PromptContext]  # rows int32[n, 2] -> what is known for them

_SHOWS_IMAGES = {"plain_sft": True, "text_sft": False}


class MLLMExperiment(Experiment):
    """An experiment whose steps train an MLLM or read one.

    A step that trains says which source and which step it is (`fine_tune`); the settings of
    training are those of its section (`base_model.SECTIONS`). What it trained is read back by the
    name of the step (`score`, `base.trained`).
    """

    # --- the base model (*ours*: a model from scratch, and the warm-up) --------------------------

    def base_steps(self) -> list[Step]:
        """Steps that make the base model; none when it is pretrained and has no warm-up."""
        record, made = self.prompt_record(), self.base.steps
        steps = []
        if MODEL in made:
            steps.append(Step(MODEL, self.write_model_directory, record, ["data"], alone=True))
        if WARMUP in made:
            settings = {**record, "warmup": as_dict(self.base.settings(WARMUP))}
            if any(self.config.warmup.tasks.get(name) for name in ASKING):
                settings["questions"] = list(self.config.understanding.questions)
            inputs = ["data", *(name for name in made if name != WARMUP)]
            steps.append(Step(WARMUP, self.warmup, settings, inputs))
        return steps

    def base_inputs(self) -> list[str]:
        """Steps whose outputs every step reads that uses the base model."""
        return ["data", *self.base.steps]

    def prompt_record(self) -> dict[str, Any]:
        """What a step depends on that puts items to the base model, for its record."""
        c = self.config
        return {**self.base.record(), "prompts": as_dict(c.prompts), "images": c.use.images}

    def write_model_directory(self, directory: Path) -> None:
        """Tokenizer and shape of a model from scratch."""
        catalog = self.dataset.catalog
        texts = list(corpus(TEMPLATES[self.config.prompts.templates]))
        for item in track(catalog, "read texts", len(catalog), "items"):
            words = [*item.text.values(), *item.attributes.keys(), item.category or ""]
            words += [f"image: {value}, {value}\n {value}" for value in item.attributes.values()]
            texts += [f" {word}" for word in words if word]
        # Whole words of the sentences become tokens: they count as much as any item's.
        texts += 50 * corpus(TEMPLATES[self.config.prompts.templates])
        # Spread over the catalog, which may be sorted.
        with_image = np.flatnonzero(catalog.has_image)
        chosen = np.random.default_rng(self.config.model.seed).permutation(with_image)
        images = (image for i in chosen if (image := catalog.image(int(i))) is not None)
        tiny_init.write_directory(directory, self.config.model.tiny, texts, images)

    def warmup(self, directory: Path) -> None:
        """Visual instruction tuning on the catalog: describe, answer questions."""
        c, catalog = self.config.warmup, self.dataset.catalog
        for line in lacking(
            build.coverage(self.workdir / "data"),
            len(catalog),
            tasks=[name for name, share in c.tasks.items() if share],
            image_attributes=self.config.prompts.image_attributes,
        ):
            logging.warning("warmup: %s", line)
        source = WarmupSource(
            catalog,
            self.prompt_config,
            length=c.length,
            seed=c.seed,
            tasks=dict(c.tasks),
            image_attributes=self.config.prompts.image_attributes,
            questions=self.config.understanding.questions,
            noise=c.noise,
            wrong_answers=c.wrong_answers,
        )
        self.fine_tune(WARMUP, source, directory)

    # --- training and scoring --------------------------------------------------------------------

    def fine_tune(
        self, step: str, source: Source, directory: Path, context: Context | None = None
    ) -> None:
        """Trains what `step` trains of the base model on `source` and leaves it in `directory`.

        context: what is known for prompts of given rows, for validation; None: there is none.
        """
        c = self.base.settings(step)
        assert isinstance(c, sft.FineTuneSettings), "GRPO trains otherwise"
        self.base.check(step, has_images=bool(self.dataset.catalog.has_image.any()))
        counts: Counter[str] = Counter()

        def batches(shard: int, shards: int) -> grain.IterDataset:
            return pipeline.batches(
                source,
                batch_size=c.batch_size,
                length=c.length,
                patches=self.patches_of_a_row(source, c.patches),
                answers=c.answers,
                targets=c.targets,
                look_ahead=c.look_ahead,
                seed=c.seed,
                workers=c.workers,
                shard=shard,
                shards=shards,
                counts=counts,
                section=f"config.{SECTIONS[step]}",
            )

        model = sft.train(
            c,
            self.base.to_train(step),
            Sharded(batches, c.input_shards, process_batch_shard(self.mesh)),
            name=step,
            directory=directory,
            mesh=self.mesh,
            yes_no_ids=self.prompt_config.chat.yes_no_ids,
            profile=self.profile,
            validation=None if context is None else self.sampled_validation(context),
        )
        log_counts(step, counts, self.mesh)
        self.base.save(step, model)

    def validation_record(self) -> dict[str, Any]:
        """What the choice of the weights depends on beside `config.sft`, for the record of a step
        that is validated; empty where none is."""
        if not self.config.sft.evaluate_every:
            return {}
        e = self.config.evaluation
        scored = {"negatives": e.negatives[0], "length": e.length, "patches": e.patches}
        return {"validation": scored}

    def sampled_validation(self, context: Context) -> sft.Validation | None:
        """NDCG and hit rate of validation targets among as many sampled items as in the table; None
        where `config.sft` asks for none."""
        c, (catalog, histories, split) = self.config.sft, self.dataset
        if not c.evaluate_every:
            return None
        frozen = protocols.sampled(
            histories,
            splits.subset(split.validation, c.validation_rows, c.seed),
            n=self.config.evaluation.negatives[0],
            seed=c.seed,
            num_items=len(catalog),
        )

        def validate(model: MLLM) -> dict[str, float]:
            lists = (context, frozen.rows, frozen.items)
            scores = self.score_lists("validation", model, *lists)
            ranks = ranking.from_scores("validation", scores, frozen).ranks.astype(np.int64)
            return {
                sft.SELECTED_BY: metrics.ndcg(ranks, 10),
                "validation/hr@5": metrics.hit_rate(ranks, 5),
            }

        return sft.Validation(c.evaluate_every, validate)

    def score(
        self, name: str, model: MLLM, source: CandidateSource, num_candidates: int
    ) -> np.ndarray:
        """Scores of the candidates of `source`: float32[rows, candidates].

        name: for log lines, which also count what did not fit.
        """
        c = self.config.evaluation
        counts: Counter[str] = Counter()
        found = candidate_scores(
            model,
            source,
            name=name,
            num_candidates=num_candidates,
            batch_size=c.batch_size,
            patches=self.patches_of_a_row(source, c.patches),
            workers=c.workers,
            yes_no_ids=self.prompt_config.chat.yes_no_ids,
            mesh=self.mesh,
            counts=counts,
        )
        log_counts(f"score {name}", counts, self.mesh)
        return found

    def image_room(self, patches: int) -> int:
        """`patches`, or 0 when this run shows no images."""
        return patches if self.config.use.images else 0

    def patches_of_a_row(self, source: Source, patches: int) -> int:
        """Vision patches of a row of examples of `source`: `patches` of them for candidates; 0 when
        it shows no images."""
        if not source.patch_width:
            return 0
        history = source.context.history_patches if isinstance(source, UserPrompts) else 0
        return patches + history

    # --- recommendation prompts ------------------------------------------------------------------

    def recommend_source(self, context: PromptContext, targets: np.ndarray) -> RecommendSource:
        """Training examples of the recommendation tasks; `context` is of the same targets."""
        c = self.config.sft
        return RecommendSource(
            context,
            self.prompt_config,
            targets,
            length=c.length,
            seed=c.seed,
            tasks=self.config.tasks,
            negatives=c.negatives,
            retriever_negatives=c.retriever_negatives,
            history=self.config.prompts.history,
            similar=self.config.prompts.similar,
        )

    def candidate_source(
        self, context: PromptContext, rows: np.ndarray, candidates: np.ndarray
    ) -> CandidateSource:
        """Candidates to score: the same prompts as in training.

        rows: int32[n, 2] (user, position), those of `context`; candidates: int32[n, C].
        """
        return CandidateSource(
            context,
            self.prompt_config,
            rows,
            candidates,
            length=self.config.evaluation.length,
            history=self.config.prompts.history,
            similar=self.config.prompts.similar,
        )

    def score_lists(
        self,
        name: str,
        model: MLLM,
        context: Context,
        rows: np.ndarray,
        lists: np.ndarray,
    ) -> np.ndarray:
        """`score` of lists of any width: float32[n, K], NaN where there is no item.

        A list is scored in parts as wide as the shortest frozen candidates, so that the room of
        `config.evaluation.length` is enough for it; each part reads the user's history once.

        Args:
          context: what is known for prompts of given rows.
          rows: int32[n, 2] (user, position).
          lists: int32[n, K], -1 where there is no item.
        """
        width = self.config.evaluation.list_width
        parts = -(-lists.shape[1] // width)
        padding = parts * width - lists.shape[1]
        items = np.pad(lists, ((0, 0), (0, padding)), constant_values=-1).reshape(-1, width)
        some = np.flatnonzero((items >= 0).any(axis=1))
        found = np.full(items.shape, np.nan, np.float32)
        if len(some):
            at = np.asarray(rows)[some // parts]
            source = self.candidate_source(context(at), at, items[some])
            found[some] = self.score(name, model, source, width)
        found[items < 0] = np.nan
        return found.reshape(len(lists), parts * width)[:, : lists.shape[1]]

    # --- plain SFT, the baseline of every method (*ours*) -----------------------------------------

    def plain_context(self, *, images: bool = True) -> PromptContext:
        """Titles and images of the history and of the candidate, no keywords and no similar users:
        what plain SFT knows (*ours*). images: False = titles alone."""
        catalog, histories, split = self.dataset
        return PromptContext(
            catalog,
            histories,
            train_end=split.train_end,
            images=images,
            history_patches=self.config.prompts.history_patches if images else 0,
        )

    def plain_source(self, targets: np.ndarray) -> RecommendSource:
        """Training examples of plain SFT."""
        return self.recommend_source(self.plain_context(), targets)

    @property
    def baselines(self) -> list[str]:
        """Step and row of each plain SFT that this run trains."""
        return [name for name in _SHOWS_IMAGES if getattr(self.config.use, name)]

    def baseline_steps(self) -> list[Step]:
        """Trains them."""
        c = self.config
        settings = {**self.base.record(), "prompts": as_dict(c.prompts), "sft": as_dict(c.sft)}
        use = c.use
        settings["use"] = {"images": use.images, "multitask": use.multitask, "clock": use.clock}
        settings |= self.validation_record()
        return [
            Step(name, functools.partial(self.baseline, name), settings, self.base_inputs())
            for name in self.baselines
        ]

    def baseline(self, name: str, directory: Path) -> None:
        """Plain SFT: the recommendation tasks by titles, without similar users."""
        targets = self.training_targets()
        source = self.recommend_source(self.baseline_context(name, targets), targets)
        context = functools.partial(self.baseline_context, name)
        self.fine_tune(name, source, directory, context)

    def baseline_context(self, name: str, rows: np.ndarray) -> PromptContext:
        """What the prompts of a baseline know."""
        del rows  # nothing depends on them: what similar users took is not shown
        return self.plain_context(images=_SHOWS_IMAGES[name])

    # --- rows of the table -----------------------------------------------------------------------

    def row_of(self, form: str) -> str:
        """Name of a form's row: the method's own for the one that recommends."""
        method = self.config.method
        return method if form == self.config.forms[0] else f"{method}/{form}"

    def add_compared(self, board: Leaderboard, context: Context) -> None:
        """What the method is compared with: trivial scorers, those that match the words which its
        prompts know by `context`, sequential models, and plain SFT among sampled candidates."""
        systems: list[System | RowSystem] = [*board.baselines()]
        systems += keyword_rows.scorers(
            self.config, self.dataset, self.prompt_config, context, board.targets
        )
        systems += map(self.recommender, self.config.sequential_models)
        for system in systems:
            board.add(system)
        for name in self.baselines:
            self.add_sampled(board, name, name, functools.partial(self.baseline_context, name))

    def add_sampled(
        self,
        board: Leaderboard,
        name: str,
        step: str,
        context: Context,
    ) -> None:
        """A row under these protocols, of what `step` trained; arguments as of `score_lists`."""

        def scores(frozen: Candidates) -> np.ndarray:
            model = self.base.trained(name, step)
            return self.score_lists(name, model, context, frozen.rows, frozen.items)

        board.add_scores(name, scores)
