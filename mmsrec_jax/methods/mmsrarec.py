"""MMSRARec (arXiv 2512.20916). Section 3 of the paper, stage by stage, and the steps of a run:

Stage 1, summarize: an MLLM turns each item's image and text into keywords.
    `summarizer`   tunes it by GRPO with verifiable rewards
    `summaries`    writes the keywords of every item
Stage 2, retrieve: whose history looks like this one, and what did they take next?
    `sasrec`       trains an ID-only sequential recommender (`config.sequential_model`), and those
                   of `config.also_sequential`
    `retrieval`    the next items of the most similar users, for every prompt
Stage 3, multi-task SFT: the MLLM says yes or no to a candidate, by its image and text, the keywords
of the user's last items and those of the similar users' next items.
    `sft`          trains it
    `cached`       trains it in the form that ranks the whole catalog (`methods.cached_items`)
    `evaluation`   ranks candidates by p(yes) / (p(yes) + p(no))

*Ours*: `model` and `warmup`, which make a small model from scratch where none is pretrained;
`plain_sft` and `text_sft`, the baselines without keywords and similar users, with images and
without; in stage 1 the image and format rewards and the bounded reconstruction reward; in stage 2
folds and distinct items; in stage 3 the tasks rank, next_keywords and align (the paper's four are
not public), the listwise loss and the keywords beside a candidate. But for the steps, each has a
weight or a flag in the settings.
"""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from mmsrec_jax.data.records import Catalog
from mmsrec_jax.evaluation import ranking
from mmsrec_jax.evaluation.leaderboard import Leaderboard
from mmsrec_jax.inference.text_store import TextStore, digest_of
from mmsrec_jax.inference.texts import Decoding, write_texts
from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.inputs.recommend import PromptContext
from mmsrec_jax.methods import generator
from mmsrec_jax.methods.cached_items import CachedItems
from mmsrec_jax.methods.mllm import MLLMExperiment
from mmsrec_jax.methods.reranker import Reranker
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.pages.items import CARDS, sample
from mmsrec_jax.prompts import parse_summary
from mmsrec_jax.retrieval import similar
from mmsrec_jax.retrieval import table as neighbors_table
from mmsrec_jax.rl import grpo, item_rewards
from mmsrec_jax.rl.settings import GRPOSettings
from mmsrec_jax.runtime.files import write_text
from mmsrec_jax.runtime.settings import as_dict
from mmsrec_jax.runtime.workdir import Step
from mmsrec_jax.sequential import train
from mmsrec_jax.sequential.recommender import SequentialRecommender

STEP_OF_FORM = {"joint": "sft", "cached": "cached"}
_RETRIEVED = 50  # items of the sequential model that negatives are drawn from


class MMSRARec(MLLMExperiment):
    """The method with one config."""

    def steps(self) -> list[Step]:
        c, use = self.config, self.config.use
        base, context = self.base_inputs(), []
        steps = [self.data_step(), *self.base_steps()]
        if use.summaries and use.rewards:
            settings = self.prompt_record() | {"summarizer": as_dict(c.summarizer)}
            steps.append(Step("summarizer", self.summarizer, settings, base))
        if use.summaries:
            written = {"summaries": as_dict(c.summaries), "rewards": use.rewards}
            if not use.rewards:  # else the summarizer's step depends on it
                written["summarizer"] = as_dict(c.summarizer)
            inputs = [*base, "summarizer"] if use.rewards else base
            steps.append(Step("summaries", self.summaries, self.prompt_record() | written, inputs))
            context.append("summaries")
        steps += self.sequential_steps()
        if use.retrieval:
            settings = {"retrieval": as_dict(c.retrieval), "similar": c.prompts.similar}
            settings |= {
                "rows": c.sft.rows,
                "seed": c.sft.seed,
                **self.sequential_record(c.sequential_model),
            }
            steps.append(Step("retrieval", self.retrieval, settings, ["data", c.sequential_model]))
            context.append("retrieval")
        tuned = {**self.base.record(), "prompts": as_dict(c.prompts), "sft": as_dict(c.sft)}
        trained = [*c.sequential_models, *(STEP_OF_FORM[form] for form in c.forms), *self.baselines]
        settings = {"evaluation": as_dict(c.evaluation), "prompts": as_dict(c.prompts)}
        settings["forms"] = list(c.forms)  # the first one has the method's name in the table
        settings["sequential_model"] = c.sequential_model
        return [
            *steps,
            *self.baseline_steps(),
            *self._form_steps({**tuned, "use": use.record()}, [*base, *context]),
            self.evaluation_step(settings, ["data", *trained]),
        ]

    def _form_steps(self, tuned: dict[str, Any], inputs: list[str]) -> list[Step]:
        """Stage 3 in each form that is asked for."""
        cached = {key: value for key, value in tuned.items() if key != "sft"}
        targets = {"rows": self.config.sft.rows, "seed": self.config.sft.seed}
        cached |= {"cached": as_dict(self.config.cached), "targets": targets}
        draws = self.config.sft.retriever_negatives > 0
        retriever = [self.config.sequential_model] if draws else []
        made = {
            "joint": Step("sft", self.sft, tuned | self.validation_record(), [*inputs, *retriever]),
            "cached": Step("cached", self.train_cached, cached, inputs),
        }
        return [made[form] for form in self.config.forms]

    # --- stage 1: summarize ----------------------------------------------------------------------

    def summarizer(self, directory: Path) -> None:
        """GRPO with verifiable rewards on the prompts that `summaries` answers."""
        model = grpo.train(
            self._summarizer_settings(),
            self.base.to_train("summarizer"),
            self.tokenizer,
            self.summary_source(),
            directory=directory,
            mesh=self.mesh,
            profile=self.profile,
        )
        self.base.save("summarizer", model)

    def summaries(self, directory: Path) -> None:
        """Keywords of every item, `summaries.jsonl`; goes on where it was stopped. With
        `config.use.rewards` the rewards of a few items' keywords too, `rewards.jsonl`."""
        catalog, store = self.dataset.catalog, self.summary_store()
        model = functools.cache(self.summary_model)

        def fields(item: int, text: str) -> dict[str, Any]:
            words = parse_summary(text)
            known = {"id": str(catalog.ids[item]), "written": text}
            return known | {"image": words.image, "text": words.text}

        def digest(item: int) -> str:
            shown = catalog[item]
            return digest_of(shown.text, shown.category, shown.image)

        write_texts(
            store,
            self.summary_source(),
            range(len(catalog)),
            model,
            self.tokenizer,
            name="summaries",
            decoding=self.summary_decoding(self.config.summaries.batch_size),
            mesh=self.mesh,
            fields=fields,
            digest=digest,
        )
        if self.config.use.rewards:
            self._reward_examples(directory / "rewards.jsonl", store, model())

    def _reward_examples(self, path: Path, store: TextStore, model: MLLM) -> None:
        """For the run's page: a line for each of a few items, with the rewards of its keywords."""
        settings = self._summarizer_settings()
        batches = -(-CARDS // settings.batch_size)
        items = sample(self.dataset.catalog, batches * settings.batch_size, seed=1)
        written = [parse_summary(store[item]["written"]) for item in items]
        found = item_rewards.of_items(
            settings, model, self.summary_source(), items, written, mesh=self.mesh
        )
        lines = [
            json.dumps({"item": item, "rewards": rewards})
            for item, rewards in item_rewards.finite(found).items()
        ]
        write_text(path, "".join(f"{line}\n" for line in lines))

    def summary_model(self) -> MLLM:
        """What turns items into keywords: tuned by rewards or, without them, the base model."""
        if self.config.use.rewards:
            return self.base.trained("summaries", "summarizer")
        return self.base.load("summaries")

    def summary_decoding(self, batch_size: int) -> Decoding:
        """How keywords are written, of `batch_size` items at once."""
        c = self.config.summarizer
        return Decoding(
            batch_size=batch_size,
            patches=self.image_room(c.patches),
            max_new_tokens=c.max_new_tokens,
            gather_weights=c.gather_weights,
        )

    def summary_source(self, catalog: Catalog | None = None) -> SummarySource:
        """The prompt of every item: its image and its text, to be turned into keywords.

        catalog: None is that of the run.
        """
        catalog = self.dataset.catalog if catalog is None else catalog
        length = self.config.summarizer.prompt_length
        return SummarySource(catalog, self.prompt_config, length=length)

    def summary_store(self) -> TextStore:
        """What step `summaries` has written so far."""
        return TextStore(self.workdir / "summaries" / "summaries.jsonl", key="item")

    def _summarizer_settings(self) -> GRPOSettings:
        """Those of the section; a run without images has no image-contrastive reward."""
        c = self.config.summarizer
        if self.config.use.images:
            return c
        return dataclasses.replace(c, patches=0, weights={**c.weights, "image_contrastive": 0.0})

    # --- stage 2: retrieve -----------------------------------------------------------------------

    def retrieval(self, directory: Path) -> None:
        """Similar users' next items for every prompt that will be written: `neighbors.parquet`."""
        _, histories, split = self.dataset
        c = self.config.retrieval
        folds: np.ndarray | None = None
        fold_models: Sequence[SequentialRecommender] = ()
        if c.folds > 1:
            folds = similar.assign_folds(len(histories), c.folds, c.seed)
            fold_models = train.train_folds(
                **self.sequential_options(self.config.sequential_model),
                folds=folds,
                directory=directory / "folds",
            )
        rows = np.concatenate([self.training_targets(), split.validation, split.test])
        found = similar.neighbors(
            self.recommender(),
            histories,
            split,
            rows,
            k=self.config.prompts.similar,
            fold_models=fold_models,
            folds=folds,
            settings=c,
            mesh=self.mesh,
        )
        neighbors_table.write(directory / "neighbors.parquet", rows, found)
        for part, rate in similar.hit_rates(found, histories, split, rows).items():
            logging.info("retrieval: %.3f of %s targets are a neighbor's next item", rate, part)
        remedy = "; a larger config.retrieval.last_prefixes may find more" * bool(c.last_prefixes)
        for part, count in similar.short(found, split, rows).items():
            logging.log(
                logging.WARNING if remedy else logging.INFO,
                "retrieval: %d of %s targets have fewer than config.prompts.similar=%d neighbors%s",
                count, part, self.config.prompts.similar, remedy,
            )  # fmt: skip

    # --- stage 3: multi-task SFT -----------------------------------------------------------------

    def sft(self, directory: Path) -> None:
        """SFT on prompts with keywords and similar users' next items; without `config.use.sft` the
        step records what is ranked by, and trains nothing."""
        if not self.config.use.sft:
            logging.info("sft: nothing is trained, as config.use.sft=False says")
            return
        targets, context = self.training_targets(), self.context(self.training_targets())
        if self.config.sft.retriever_negatives:
            context = dataclasses.replace(context, retrieved=self._first_items(targets))
        self.fine_tune("sft", self.recommend_source(context, targets), directory, self.context)

    def _first_items(self, targets: np.ndarray) -> np.ndarray:
        """int32[n, K]: what the sequential model, which knows training interactions alone, ranks
        first after what each user had before the target."""
        top = min(_RETRIEVED, len(self.dataset.catalog))
        return ranking.full(self.recommender(), self.dataset.histories, targets, top=top).top

    def train_cached(self, directory: Path) -> None:
        """The same prompts, in the form in which users and items are read apart."""
        self.cached_items().train(directory)

    def cached_items(self) -> CachedItems:
        """The form that ranks the whole catalog."""
        return CachedItems(self, "cached", self.context)

    def context(self, targets: np.ndarray) -> PromptContext:
        """What stages 1 and 2 know, for prompts of these targets int32[n, 2] (user, position)."""
        catalog, histories, split = self.dataset
        keywords = neighbors = None
        if self.config.use.summaries:
            keywords = self.keywords()
        if self.config.use.retrieval:
            path = self.workdir / "retrieval" / "neighbors.parquet"
            neighbors = neighbors_table.read_items(path, targets)
        return PromptContext(catalog, histories, keywords, neighbors, split.train_end)

    def keywords(self) -> list[str]:
        """Of every item, comma-separated; see `joined_keywords`."""
        found = [""] * len(self.dataset.catalog)
        for row in self.summary_store():
            found[row["item"]] = joined_keywords(row["image"], row["text"], self.keyword_counts)
        if bare := sum(not words for words in found):
            logging.warning(
                "%d of %d items have no keywords; lists show their text", bare, len(found)
            )
        return found

    @functools.cached_property
    def keyword_counts(self) -> Counter[str]:
        """How many items have each keyword."""
        return Counter(word for row in self.summary_store() for word in row["image"] + row["text"])

    def features_read(self) -> list[str]:
        shown = self.config.use.summaries and self.config.prompts.candidate_keywords
        return [*super().features_read(), *(["summaries"] if shown else [])]

    def candidate_keywords(self) -> Sequence[str] | None:
        return self.keywords() if "summaries" in self.features_read() else None

    def evaluation(self, directory: Path) -> None:
        """Ranks of every system on disk, and the table."""
        board = self.leaderboard(directory)
        self.add_compared(board, self.context)
        for form in self.config.forms:
            self._add_form(board, form)
        if self.config.evaluation.rerank:
            self.add_reranked(board, directory)
        if self.config.evaluation.generate:
            generator.add(board, self, self.context, directory)
        board.add_truth(self.world())
        board.finish()

    def _add_form(self, board: Leaderboard, form: str) -> None:
        name = self.row_of(form)
        if form == "cached":
            self.cached_items().add_rows(board, name)
        else:
            self.add_sampled(board, name, "sft", self.context)

    def add_reranked(self, board: Leaderboard, directory: Path) -> None:
        """Full-catalog ranks of the MLLMs, see `config.evaluation.rerank`."""
        reranker = Reranker(self, directory)
        for name in self.baselines:
            context = functools.partial(self.baseline_context, name)
            board.add_full_ranks(name, functools.partial(reranker.ranks, name, name, context))
        if "joint" not in self.config.forms:
            return
        name = self.row_of("joint")
        board.add_full_ranks(name, lambda: reranker.ranks(name, "sft", self.context))
        if self.config.evaluation.fuse:
            fused = f"{name}+{self.config.sequential_model}"
            board.add_full_ranks(fused, lambda: reranker.fused(fused, name, "sft", self.context))


def joined_keywords(image: Sequence[str], text: Sequence[str], counts: Mapping[str, int]) -> str:
    """An item's keywords as prompts take them, each once: those of the text first, which say what
    it is and what for; of each, the more frequent one first, so that words of one kind have one
    place (*ours*).

    counts: how many items of the catalog have each keyword.
    """

    def ordered(words: Sequence[str]) -> list[str]:
        return sorted(words, key=lambda word: (-counts.get(word, 0), word))

    return ", ".join(dict.fromkeys([*ordered(text), *ordered(image)]))
