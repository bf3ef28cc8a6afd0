"""MLLM-SRec (Scientific Reports 2025, s41598-025-14251-1), part by part, and the steps of a run:

(a) Dynamic multimodal sequences: a window slides over every history (`data.windows`).
(b) Items understood by questions about their images, fused with their texts
    (`methods.item_texts`).
    `visual_answers`, `item_texts`, `claims`
(c) Interest over time: the model summarizes every window, given the window before it and the gaps.
    `writer`        teaches a model from scratch to write such texts (*ours*)
    `preferences`   writes them, for all users at once, window by window
(d) Profile, dynamic preference and the target joined in SFT with a multi-step chain of thought:
    `users`         reads what users state of themselves, where `config.data.user_fields` asks
    `profiles`      writes what each user usually likes, and states
    `chain_sft`     trains the joint form (paper): recent preference -> how it moved -> what the
                    target offers -> yes or no
    `chain_cached`  trains the form that ranks the whole catalog (*ours*, `methods.cached_items`)
    `evaluation`    ranks candidates by p(yes) / (p(yes) + p(no))

*Paper:* ratings above a threshold are positives, negatives are balanced. *Ours:* a low rating is
kept: it is told in prompts and texts, and a disliked target is a negative (`inputs.tastes`).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmsrec_jax.evaluation.leaderboard import Leaderboard
from mmsrec_jax.inference.texts import Decoding, write_texts
from mmsrec_jax.inputs import chains
from mmsrec_jax.inputs.item_renderer import PromptConfig
from mmsrec_jax.inputs.pairs import PairPrompts
from mmsrec_jax.inputs.recommend import CandidateSource, PromptContext
from mmsrec_jax.inputs.taste_prompts import (
    Chains,
    ChainTexts,
    TasteCandidates,
    TasteContext,
    TastePairs,
    TasteRecommend,
)
from mmsrec_jax.methods import checks
from mmsrec_jax.methods.cached_items import CachedItems
from mmsrec_jax.methods.item_texts import TEXTS, ItemTexts
from mmsrec_jax.methods.mllm import MLLMExperiment
from mmsrec_jax.methods.reranker import Reranker
from mmsrec_jax.methods.user_texts import UserTexts
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import digests
from mmsrec_jax.runtime.buckets.given import local
from mmsrec_jax.runtime.settings import as_dict
from mmsrec_jax.runtime.workdir import Step

STEP_OF_FORM = {"joint": "chain_sft", "cached": "chain_cached"}
NAME = "mllm_srec"


class MLLMSRec(MLLMExperiment):
    """The method with one config."""

    def steps(self) -> list[Step]:
        c = self.config
        base = self.base_inputs()
        about_items = self.item_texts.steps(base)
        about_users = self.user_texts.steps([*base, TEXTS])
        written = [step.name for step in about_users if step.name != "writer"]
        tuned = {**self.base.record(), "prompts": as_dict(c.prompts), "sft": as_dict(c.sft)}
        plain = self.baseline_steps()
        forms = self._form_steps(tuned, [*base, TEXTS, *written])
        trained = [*c.sequential_models, *(step.name for step in (*plain, *forms)), TEXTS, *written]
        settings: dict[str, Any] = {
            "evaluation": as_dict(c.evaluation),
            "prompts": as_dict(c.prompts),
        }
        settings |= {"method": NAME, "forms": list(c.forms), "scoring": c.chain.scoring}
        settings["sequential_model"] = c.sequential_model
        return [
            self.data_step(),
            *self.user_texts.users_steps(),
            *self.base_steps(),
            *about_items,
            *self.sequential_steps(),
            *about_users,
            *plain,
            *forms,
            self.evaluation_step(settings, ["data", *trained]),
        ]

    def _form_steps(self, tuned: dict[str, Any], inputs: list[str]) -> list[Step]:
        """SFT in each form that is asked for."""
        c = self.config
        chain = {"weight": c.chain.label_weight, "file": _file_record(c.chain.file)}
        tuned = {**tuned, "use": c.use.record(), "chain": chain}
        tuned["preferences"] = as_dict(c.preferences)
        cached = {key: value for key, value in tuned.items() if key != "sft"}
        cached |= {"cached": as_dict(c.cached), "targets": {"rows": c.sft.rows, "seed": c.sft.seed}}
        made = {
            "joint": Step(
                STEP_OF_FORM["joint"], self.chain_sft, tuned | self.validation_record(), inputs
            ),
            "cached": Step(STEP_OF_FORM["cached"], self.train_cached, cached, inputs),
        }
        return [made[form] for form in c.forms]

    def check_data(self) -> None:
        super().check_data()
        checks.check_tastes(self.config, self.dataset, self.training_targets())

    @functools.cached_property
    def prompt_config(self) -> PromptConfig:
        """How this run puts items to the MLLM; without the clock no pauses are told."""
        found = super().prompt_config
        return dataclasses.replace(found, pauses=found.pauses and self.config.use.clock)

    # --- (b) items -------------------------------------------------------------------------------

    @functools.cached_property
    def item_texts(self) -> ItemTexts:
        """Visual answers, and one summary of each item."""
        return ItemTexts(self)

    @functools.cached_property
    def item_words(self) -> Sequence[str]:
        """Of every item, comma-separated: what prompts show of it."""
        return self.item_texts.words()

    # --- (c) interest over time, and profiles ----------------------------------------------------

    @functools.cached_property
    def user_texts(self) -> UserTexts:
        """Texts about windows and whole histories."""
        return UserTexts(self, lambda: self.item_words, self.all_targets)

    def all_targets(self) -> np.ndarray:
        """int32[n, 2] (user, position): of training, validation and test."""
        split = self.dataset.split
        return np.concatenate([self.training_targets(), split.validation, split.test])

    # --- (d) SFT with a chain of thought ---------------------------------------------------------

    def chain_sft(self, directory: Path) -> None:
        """The joint form."""
        c, targets = self.config.sft, self.training_targets()
        source = TasteRecommend(
            self.training_context(targets),
            self.prompt_config,
            targets,
            length=c.length,
            seed=c.seed,
            tasks={"pointwise": 1.0},
            negatives=c.negatives,
            history=self.config.prompts.history,
            similar=self.config.prompts.similar,
        )
        self.fine_tune(STEP_OF_FORM["joint"], source, directory, self.scoring_context)

    def train_cached(self, directory: Path) -> None:
        """The cached form."""
        self.chain_items().train(directory)

    def chain_items(self) -> "ChainItems":
        """The form that ranks the whole catalog."""
        return ChainItems(self)

    def training_context(self, targets: np.ndarray) -> TasteContext:
        """What training prompts of targets int32[n, 2] know: chains are those of a file, or what
        counting says of the last window."""
        if not self.config.use.chain:
            return self._context(self.user_texts, None, offers=False)
        path = self.config.chain.file
        given = chains.read(local(path), self.dataset.histories) if path else {}
        found = chains.ComputedChains(self.user_texts.tastes, targets, given)
        return self._context(self.user_texts, found, offers=True)

    def scoring_context(
        self,
        targets: np.ndarray,
        generated: Sequence[str] | None = None,
        texts: UserTexts | None = None,
    ) -> TasteContext:
        """What prompts of targets int32[n, 2] know when candidates are scored: chains are what the
        model wrote of the last window, unless they are generated or absent.

        texts: about other users than those of the run.
        """
        use, scoring, texts = self.config.use, self.config.chain.scoring, texts or self.user_texts
        found: Sequence[str] | None = None
        if use.chain and scoring == "none":
            found = [""] * len(targets)
        elif use.chain:
            found = list(generated or _stored_chains(texts, targets))
        return self._context(texts, found, offers=use.chain and scoring != "none")

    def _context(self, texts: UserTexts, found: Chains | None, *, offers: bool) -> TasteContext:
        use = self.config.use
        return TasteContext(
            self.dataset.catalog,
            texts.histories,
            self.item_words,
            train_end=self.dataset.split.train_end if texts.asked is None else None,
            tastes=texts.tastes,
            preferences=texts.preferences,
            profiles=texts.profiles if use.profile else None,
            chains=found,
            offers=offers,
            token_weight=1.0 / self.config.chain.label_weight,
        )

    def generated_chains(
        self,
        form: str,
        targets: np.ndarray,
        *,
        length: int,
        texts: UserTexts | None = None,
        make_model: Callable[[], MLLM] | None = None,
    ) -> Sequence[str] | None:
        """The chains that the trained model itself writes, where `config.chain.scoring` asks for
        them; they are kept in the folder of step `evaluation`, or in that of `texts`.

        Args:
          length: of a prompt with its chain, in tokens, at most.
          texts: about other users than those of the run.
          make_model: gives the trained model, where it is in memory.
        """
        c, texts = self.config, texts or self.user_texts
        if not c.use.chain or c.chain.scoring != "generated":
            return None
        asked = texts.asked
        folder = self.workdir / "evaluation" if asked is None else texts.folder
        store = texts.open(folder / f"chains-{form}.jsonl", ("user", "position"))
        some = targets[texts.tastes.windows.count(targets[:, 1]) > 0]
        source = ChainTexts(
            self.scoring_context(some, texts=texts), self.prompt_config, some,
            length=length, history=c.prompts.history, similar=c.prompts.similar,
        )  # fmt: skip
        if asked is None:  # with little padding; one question after another has one shape
            longest = max((len(source.example(row, 0)) for row in range(len(some))), default=1)
            source.length = min(length, -(-longest // 16) * 16)
        users = texts.histories.users
        keys = [(str(users[user]), int(position)) for user, position in some]
        write_texts(
            store, source, keys,
            make_model or (lambda: self.base.trained(NAME, STEP_OF_FORM[form])), self.tokenizer,
            name=f"chains of the {form} form",
            decoding=Decoding(
                batch_size=c.preferences.batch_size if asked is None else asked.batch_size,
                patches=0,
                max_new_tokens=c.preferences.max_new_tokens,
                gather_weights=c.preferences.gather_weights,
            ),
            mesh=self.mesh,
        )  # fmt: skip
        clean = self.prompt_config.chat.clean
        found = dict(zip(map(tuple, some.tolist()), keys, strict=True))
        return [
            clean(store[found[target]]["written"].split("\n")[0]) if target in found else ""
            for target in map(tuple, targets.tolist())
        ]

    def candidate_source(
        self, context: PromptContext, rows: np.ndarray, candidates: np.ndarray
    ) -> CandidateSource:
        kind = TasteCandidates if isinstance(context, TasteContext) else CandidateSource
        return kind(
            context,
            self.prompt_config,
            rows,
            candidates,
            length=self.config.evaluation.length,
            history=self.config.prompts.history,
            similar=self.config.prompts.similar,
        )

    # --- the table -------------------------------------------------------------------------------

    def evaluation(self, directory: Path) -> None:
        """Ranks of every system on disk, and the table."""
        board = self.leaderboard(directory)
        self.add_compared(board, self._words_alone)
        for form in self.config.forms:
            self._add_form(board, form)
        if self.config.evaluation.rerank:
            self._add_reranked(board, directory)
        board.add_truth(self.world())
        board.finish()

    def _words_alone(self, rows: np.ndarray) -> PromptContext:
        catalog, histories, split = self.dataset
        return PromptContext(catalog, histories, self.item_words, train_end=split.train_end)

    def _add_form(self, board: Leaderboard, form: str) -> None:
        name = self.row_of(form)
        if form == "cached":
            self.chain_items().add_rows(board, name)
        else:
            self.add_sampled(board, name, STEP_OF_FORM[form], self._joint_context)

    def _add_reranked(self, board: Leaderboard, directory: Path) -> None:
        """Full-catalog ranks in the joint form, see `config.evaluation.rerank`."""
        if "joint" not in self.config.forms:
            return
        reranker, name = Reranker(self, directory), self.row_of("joint")
        step = STEP_OF_FORM["joint"]
        board.add_full_ranks(name, lambda: reranker.ranks(name, step, self._joint_context))

    def _joint_context(self, targets: np.ndarray) -> TasteContext:
        length = self.config.evaluation.length
        generated = self.generated_chains("joint", targets, length=length)
        return self.scoring_context(targets, generated)


class ChainItems(CachedItems):
    """The cached form, with chains of thought in the prompts of users."""

    kind = TastePairs

    def __init__(self, run: MLLMSRec):
        super().__init__(run, STEP_OF_FORM["cached"], run.scoring_context)
        self._srec = run
        self._trained = False

    def training_prompts(self) -> PairPrompts:
        """Of the targets that are liked; see `config.preferences.positives`."""
        run = self._srec
        targets, histories = run.training_targets(), run.dataset.histories
        at = histories.offsets[targets[:, 0]] + targets[:, 1]
        targets = self.chosen(targets[run.user_texts.tastes.positives[at]])
        return self.made(run.training_context(targets), targets)

    def prompts(self, rows: np.ndarray) -> PairPrompts:
        """Chains that are generated are known once the model is trained; before, when it is
        validated, the stored texts stand in their place."""
        run, generated = self._srec, None
        if self._trained:
            length = run.config.cached.prompt_length
            generated = run.generated_chains("cached", rows, length=length)
        return self.made(run.scoring_context(rows, generated), rows)

    def add_rows(self, board: Leaderboard, name: str) -> None:
        self._trained = True
        super().add_rows(board, name)


def _stored_chains(texts: UserTexts, targets: np.ndarray) -> list[str]:
    """What was written of the last window before each target; "" where none has ended."""
    written, counts = texts.preferences, texts.tastes.windows.count
    return [
        written[user, counts(position) - 1] if counts(position) else ""
        for user, position in targets.tolist()
    ]


def _file_record(path: str) -> list[Any]:
    """Digest of a file of chains, for the record of a step."""
    return digests.of_input(local(path)) if path else []
