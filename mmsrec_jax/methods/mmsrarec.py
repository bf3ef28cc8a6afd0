"""MMSRARec (arXiv 2512.20916), step by step in reading order.

data -> model -> warm-up -> summarizer (GRPO) -> summaries -> SASRec -> retrieval -> multi-task SFT
-> evaluation beside random, popularity, co-occurrence, SASRec and plain SFT. Warm-up is for models
without pretrained weights (*ours*), the rest is the paper's.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging
from flax import nnx
from ml_collections import ConfigDict

from mmsrec_jax.data import splits
from mmsrec_jax.evaluation import ranking
from mmsrec_jax.hf import tiny_init
from mmsrec_jax.inference.scoring import candidate_scores
from mmsrec_jax.inference.summarize import summarize
from mmsrec_jax.inputs import pipeline
from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.inputs.recommend import CandidateSource, PromptContext, RecommendSource
from mmsrec_jax.inputs.sharded import Sharded
from mmsrec_jax.inputs.warmup import WarmupSource
from mmsrec_jax.methods import common
from mmsrec_jax.models import lora
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.prompts import TEMPLATES, corpus, parse_summary
from mmsrec_jax.retrieval import similar
from mmsrec_jax.retrieval import table as neighbors_table
from mmsrec_jax.rl import grpo
from mmsrec_jax.runtime import processes, startup
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.files import write_text
from mmsrec_jax.runtime.progress import track
from mmsrec_jax.runtime.sharding import process_batch_shard
from mmsrec_jax.runtime.workdir import Step
from mmsrec_jax.sequential import train
from mmsrec_jax.training import sft, weights

ADAPTERS, WEIGHTS = "adapters", "weights"  # what steps leave of the model


def run(config: ConfigDict, workdir: Path, only: Sequence[str] | None = None) -> None:
    """Runs the steps of `config` in `workdir`, or those named in `only`.

    Raises:
      UserError: anything the user can put right, see the steps.
    """
    check(config)
    Run.run(config, workdir, only)


def check(config: ConfigDict) -> None:
    """Stops early when what the config names is not there."""
    common.check(config)
    if config.model.require_path and not config.model.path:
        raise UserError(f"config.model.path is not set. {config.model.path_help}")


class Run(common.Experiment):
    """The method with one config."""

    def steps(self) -> list[Step]:
        c = self.config
        use, prompts = c.use.to_dict(), c.prompts.to_dict()
        model = {"model": c.model.to_dict(), "prompts": prompts, "images": use["images"]}
        listed = {
            "prompts": prompts,
            "use": use,
            "sft": sft.settings(c.sft),
            "model": model["model"],
        }
        plain = {**listed, "use": {"images": use["images"], "multitask": use["multitask"]}}
        steps = [self.data_step()]
        base = ["data", "model"]
        if c.model.path:
            base = ["data"]
        else:
            warmup = {**model, "warmup": sft.settings(c.warmup)}
            steps += [
                Step("model", self.model_directory, model, ["data"], alone=True),
                Step("warmup", self.warmup, warmup, base),
            ]
            base = [*base, "warmup"]
        context = []
        if use["summaries"]:
            tuned = {**model, "summarizer": grpo.settings(c.summarizer)}
            written = {"summaries": c.summaries.to_dict(), "rewards": use["rewards"]}
            if use["rewards"]:
                steps.append(Step("summarizer", self.summarizer, tuned, base))
                context = ["summarizer"]
            inputs = [*base, *context]
            steps.append(Step("summaries", self.summaries, {**model, **written}, inputs))
            context = ["summaries"]
        steps += self.sequential_steps()
        if use["retrieval"]:
            settings = {
                "retrieval": c.retrieval.to_dict(),
                "similar": prompts["similar"],
                **self.sequential_settings(),
            }
            steps.append(Step("retrieval", self.retrieval, settings, ["data", c.sequential_model]))
            context = [*context, "retrieval"]
        steps += [
            Step("plain_sft", self.plain_sft, plain, base),
            Step("sft", self.sft, listed, [*base, *context]),
            Step(
                "evaluation",
                self.evaluation,
                {"evaluation": c.evaluation.to_dict(), "prompts": prompts},
                ["data", c.sequential_model, "plain_sft", "sft"],
            ),
        ]
        return steps

    # --- inputs of the steps ---------------------------------------------------------------------

    def base_model(self, name: str, trainable: str = "lora") -> MLLM:
        """The model every step starts from: pretrained, or warmed up."""
        c = self.config.model
        if c.path:
            return self.pretrained(name, trainable)
        model = self._from_scratch()
        weights.restore(self.workdir / "warmup" / WEIGHTS, model, nnx.Param, self.mesh)
        startup.report_model(name, model)
        return model

    def _from_scratch(self) -> MLLM:
        c = self.config.model
        return tiny_init.init(self.model_path, dtype=c.dtype, seed=c.seed, mesh=self.mesh)

    def _patches(self, count: int) -> int:
        return count if self.config.use.images else 0

    def _batches(self, source, config: ConfigDict, counts: Counter) -> Sharded:
        def make(shard, shards):
            return pipeline.batches(
                source,
                batch_size=config.batch_size,
                length=config.length,
                patches=self._patches(config.patches),
                answers=config.answers,
                targets=config.targets,
                seed=config.seed,
                workers=config.workers,
                shard=shard,
                shards=shards,
                counts=counts,
            )

        return Sharded(make, config.input_shards, process_batch_shard(self.mesh))

    # --- steps -----------------------------------------------------------------------------------

    def model_directory(self, directory: Path) -> None:
        """Tokenizer and shape of a model from scratch."""
        catalog, _, _ = self.dataset
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
        images = (catalog.image(int(i)) for i in chosen)
        tiny_init.write_directory(directory, self.config.model.tiny, texts, images)

    def warmup(self, directory: Path) -> None:
        """Visual instruction tuning on the catalog: describe, answer questions (*ours*)."""
        c, counts = self.config.warmup, Counter()
        catalog, _, _ = self.dataset
        model = self._from_scratch()
        startup.report_model("warmup", model)
        source = WarmupSource(
            catalog,
            self.prompt_config,
            length=c.length,
            seed=c.seed,
            tasks=c.tasks.to_dict(),
            image_attributes=self.config.prompts.image_attributes,
            noise=c.noise,
        )
        model = sft.train(
            c,
            model,
            self._batches(source, c, counts),
            name="warmup",
            directory=directory,
            mesh=self.mesh,
            yes_no_ids=self.prompt_config.chat.yes_no_ids,
            profile=self.profile,
        )
        common.log_counts("warmup", counts, self.mesh)
        weights.save(directory / WEIGHTS, model, nnx.Param)

    def summarizer(self, directory: Path) -> None:
        """Stage 1: GRPO with verifiable rewards."""
        c = self.config.summarizer.copy_and_resolve_references()
        model = self._with_adapters(self.base_model("summarizer"), c)
        with c.unlocked():
            c.patches = self._patches(c.patches)
            if not self.config.use.images:
                c.weights.image_contrastive = 0.0
        model = grpo.train(
            c,
            model,
            self.tokenizer,
            self._summary_source(),
            directory=directory,
            mesh=self.mesh,
            profile=self.profile,
        )
        weights.save(directory / ADAPTERS, model, nnx.LoRAParam)

    def summaries(self, directory: Path) -> None:
        """Keywords of every item, `summaries.jsonl`; goes on where it was stopped."""
        c = self.config
        catalog, _, _ = self.dataset
        path = directory / "summaries.jsonl"
        processes.from_main(lambda: len(_read_lines(path)))  # which cuts off half a line
        done = [row["item"] for row in _read_lines(path)]
        rest = np.setdiff1d(np.arange(len(catalog)), done)
        if not len(rest):
            return
        model = self.base_model("summaries")
        if c.use.rewards:
            model = self._with_adapters(model, c.summarizer)
            tuned = self.workdir / "summarizer" / ADAPTERS
            weights.restore(tuned, model, nnx.LoRAParam, self.mesh)
        found = summarize(
            model,
            self.tokenizer,
            self._summary_source(rest),
            batch_size=c.summaries.batch_size,
            patches=self._patches(c.summarizer.patches),
            max_new_tokens=c.summarizer.max_new_tokens,
            gather_weights=c.summarizer.gather_weights,
            mesh=self.mesh,
        )
        with (path if processes.is_main() else Path(os.devnull)).open("a") as file:
            for item, text in track(found, "summarize", len(rest), "items"):
                words = parse_summary(text)
                row = {"item": item, "id": str(catalog.ids[item]), "written": text}
                row |= {"image": words.image, "text": words.text}
                file.write(json.dumps(row) + "\n")
                file.flush()

    def retrieval(self, directory: Path) -> None:
        """Stage 2, second half: similar users' next items for every prompt that will be written."""
        _, histories, split = self.dataset
        c = self.config.retrieval
        folds, fold_models = None, ()
        if c.folds > 1:
            folds = similar.assign_folds(len(histories), c.folds, c.seed)
            fold_models = train.train_folds(
                **self.sequential_options(), folds=folds, directory=directory / "folds"
            )
        rows = np.concatenate([self.training_rows(), split.validation, self.test_rows()])
        found = similar.neighbors(
            self.recommender(),
            histories,
            split,
            rows,
            k=self.config.prompts.similar,
            fold_models=fold_models,
            folds=folds,
            distinct_items=c.distinct_items,
            mesh=self.mesh,
        )
        neighbors_table.write(directory / "neighbors.parquet", rows, found)
        for part, rate in similar.hit_rates(found, histories, split, rows).items():
            logging.info("retrieval: %.3f of %s targets are a neighbor's next item", rate, part)

    def plain_sft(self, directory: Path) -> None:
        """The baseline: titles in place of keywords, no similar users (*ours*)."""
        self._sft("plain_sft", directory, with_context=False)

    def sft(self, directory: Path) -> None:
        """Stage 3: multi-task SFT."""
        self._sft("sft", directory, with_context=True)

    def _sft(self, name: str, directory: Path, *, with_context: bool) -> None:
        c, counts = self.config.sft, Counter()
        model = self.base_model(name, c.trainable)
        if c.trainable == "lora":
            model = self._with_adapters(model, c)
        source = self._recommend_source(self.training_rows(), with_context)
        model = sft.train(
            c,
            model,
            self._batches(source, c, counts),
            name=name,
            directory=directory,
            mesh=self.mesh,
            yes_no_ids=self.prompt_config.chat.yes_no_ids,
            profile=self.profile,
        )
        common.log_counts(name, counts, self.mesh)
        weights.save(directory / WEIGHTS, model, lora.trainable(c.trainable))

    def evaluation(self, directory: Path) -> None:
        """Ranks of every system on disk, and the table."""
        board = common.Leaderboard(self, directory)
        systems, frozen = board.systems(), board.frozen
        for system in systems:
            board.add_sampled(system)
        for system, step, with_context in (
            ("plain_sft", "plain_sft", False),
            ("mmsrarec", "sft", True),
        ):
            board.add(
                system,
                frozen.name,
                lambda system=system, step=step, known=with_context: ranking.from_scores(
                    system, self._candidate_scores(system, step, known, frozen), frozen
                ),
            )
        for system in systems:
            board.add_full(system)
        board.add_truth()
        board.finish()

    # --- what the steps share --------------------------------------------------------------------

    def training_rows(self) -> np.ndarray:
        """int32[n, 2]: the training targets that SFT uses."""
        _, _, split = self.dataset
        return splits.subset(split.train, self.config.sft.rows, self.config.sft.seed)

    def _summary_source(self, rows: np.ndarray | None = None) -> SummarySource:
        catalog, _, _ = self.dataset
        length = self.config.summarizer.prompt_length
        return SummarySource(catalog, self.prompt_config, length=length, rows=rows)

    def _recommend_source(self, rows: np.ndarray, with_context: bool) -> RecommendSource:
        """The tasks of stage 3 on these targets."""
        c = self.config.sft
        return RecommendSource(
            self._context(rows, with_context),
            self.prompt_config,
            rows,
            length=c.length,
            seed=c.seed,
            tasks=c.tasks.to_dict() if self.config.use.multitask else {"pointwise": 1.0},
            negatives=c.negatives,
            history=self.config.prompts.history,
            similar=self.config.prompts.similar,
        )

    def _with_adapters(self, model: MLLM, config: ConfigDict) -> MLLM:
        lora.add(model, config.lora_rank, config.lora_alpha, rngs=nnx.Rngs(config.seed))
        return model

    def _context(self, rows: np.ndarray, with_context: bool) -> PromptContext:
        catalog, histories, split = self.dataset
        use, keywords, neighbors = self.config.use, None, None
        if with_context and use.summaries:
            keywords = [""] * len(catalog)
            for row in _read_lines(self.workdir / "summaries" / "summaries.jsonl"):
                keywords[row["item"]] = ", ".join(dict.fromkeys(row["image"] + row["text"]))
            if bare := sum(not words for words in keywords):
                logging.warning(
                    "%d of %d items have no keywords; lists show their text", bare, len(keywords)
                )
        if with_context and use.retrieval:
            path = self.workdir / "retrieval" / "neighbors.parquet"
            neighbors = neighbors_table.read_items(path, rows)
        return PromptContext(catalog, histories, keywords, neighbors, split.train_end)

    def _candidate_scores(self, system, step, with_context, frozen) -> np.ndarray:
        c = self.config
        model = self.base_model(system, c.sft.trainable)
        if c.sft.trainable == "lora":
            model = self._with_adapters(model, c.sft)
        kind = lora.trainable(c.sft.trainable)
        weights.restore(self.workdir / step / WEIGHTS, model, kind, self.mesh)
        source = CandidateSource(
            self._context(frozen.rows, with_context),
            self.prompt_config,
            frozen.rows,
            frozen.items,
            length=c.evaluation.length,
            history=c.prompts.history,
            similar=c.prompts.similar,
        )
        return candidate_scores(
            model,
            source,
            name=system,
            num_candidates=frozen.items.shape[1],
            batch_size=c.evaluation.batch_size,
            patches=self._patches(c.evaluation.patches),
            workers=c.evaluation.workers,
            yes_no_ids=self.prompt_config.chat.yes_no_ids,
            mesh=self.mesh,
        )


def _read_lines(path: Path) -> list[dict]:
    """Rows of a jsonl file; a last line that a kill cut short is dropped from the file."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(path, whole)
    return [json.loads(line) for line in whole.splitlines()]
