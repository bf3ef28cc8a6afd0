"""The settings of an experiment: those of every part, composed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmsrec_jax.data.build import DataSettings
from mmsrec_jax.evaluation.settings import EvaluationSettings
from mmsrec_jax.hf.loading import ModelSettings
from mmsrec_jax.inference.settings import (
    FeatureSettings,
    SummariesSettings,
    UnderstandingSettings,
)
from mmsrec_jax.inputs.chains import ChainSettings
from mmsrec_jax.inputs.tastes import PreferenceSettings
from mmsrec_jax.inputs.understanding import IMAGE
from mmsrec_jax.inputs.warmup import ASKING
from mmsrec_jax.planning.planned import PlanningSettings
from mmsrec_jax.prompts.settings import PromptSettings
from mmsrec_jax.prompts.templates import LETTERS
from mmsrec_jax.retrieval.similar import RetrievalSettings
from mmsrec_jax.rl.settings import GRPOSettings
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import MAX_SEED, Section, as_dict, group, setting
from mmsrec_jax.runtime.sharding import MeshSettings
from mmsrec_jax.runtime.trackers import TrackingSettings
from mmsrec_jax.sequential.base import SequentialSettings
from mmsrec_jax.sequential.bert4rec import BERT4RecSettings
from mmsrec_jax.sequential.gru4rec import GRU4RecSettings
from mmsrec_jax.sequential.hm4sr import HM4SRSettings
from mmsrec_jax.sequential.molar import MolarSettings
from mmsrec_jax.sequential.registry import MODELS
from mmsrec_jax.sequential.sasrec import SASRecSettings
from mmsrec_jax.training.metering import steps_to_trace
from mmsrec_jax.training.pairs import CachedSettings
from mmsrec_jax.training.sft import SFTSettings, WarmupSettings, WriterSettings

METHODS = ("mmsrarec", "mllm_srec")
"""The papers' methods."""
BOTH = "both"
# What decides which users and candidates are ranked, and how.
_SHARED = ("users", "negatives", "k", "seed")


@dataclasses.dataclass(frozen=True)
class UseSettings(Section):
    """Ablations: what the method may use."""

    images: bool = setting(True, "False: no image anywhere.")
    summaries: bool = setting(True, "False: raw text in place of keywords.")
    rewards: bool = setting(True, "False: summaries by the model as it is, not tuned by rewards.")
    retrieval: bool = setting(True, "False: no similar users in the prompt.")
    multitask: bool = setting(True, "False: the pointwise task alone.")
    sft: bool = setting(
        True, "False: the joint form of MMSRARec ranks by the model as it is before stage 3."
    )
    plain_sft: bool = setting(True, "False: plain SFT is not trained beside the method.")
    text_sft: bool = setting(False, "True: plain SFT without images is trained too.")
    windows: bool = setting(
        True, "False: MLLM-SRec writes one text of all of a history, not one of each window."
    )
    clock: bool = setting(True, "False: MLLM-SRec tells no gaps in time.")
    profile: bool = setting(True, "False: MLLM-SRec writes no profile.")
    chain: bool = setting(True, "False: MLLM-SRec answers without a chain of thought.")

    def record(self) -> dict[str, Any]:
        """What a step of a method depends on: not which baselines are trained beside it."""
        return as_dict(dataclasses.replace(self, plain_sft=True, text_sft=False))


@dataclasses.dataclass(frozen=True)
class Settings(Section):
    """Every field of an experiment. Each section belongs to the code that reads it."""

    method: str = setting(
        "mmsrarec",
        "A paper's method, both in folders of their names on the same data and candidates with one "
        "table of both, a sequential recommender by itself, or one point of a scaling study.",
        choices=(*METHODS, BOTH, "sequential", "scaling"),
    )
    mllm_srec: Mapping[str, Any] = setting(
        {},
        "With method=both, what MLLM-SRec has otherwise: fields of the config, nested as there. "
        "Those that the experiment names can be set, as config.mllm_srec.cached.steps.",
    )
    sequential_model: str = setting(
        "sasrec", "Trained by itself, or to retrieve similar users.", choices=tuple(MODELS)
    )
    also_sequential: tuple[str, ...] = setting(
        (),
        "Sequential recommenders that are trained and ranked beside it, by their own sections; "
        "Molar and HM4SR read what the run's MLLM makes of items.",
        choices=tuple(MODELS),
    )
    forms: tuple[str, ...] = setting(
        ("joint",),
        "How stage 3 puts candidates to the MLLM: joint (the paper: in sight of the user's "
        "prompt), cached (ours: apart, so that the whole catalog is ranked). The first recommends.",
        choices=("joint", "cached"),
    )
    seed: int = setting(
        0, "Of everything random: data, weights, order, negatives, samples.", low=0, high=MAX_SEED
    )
    seeds: tuple[int, ...] = setting(
        (),
        "The experiment runs once under each, in seed-N of the workdir and on the same data and "
        "candidates; then there is one table of all. Empty: once, under `seed`.",
        low=0,
        high=MAX_SEED,
    )
    input_shards: int = setting(
        0,
        "Batches are packed in so many parts, which processes share. A run goes on with any number "
        "of processes that divides it. 0 is as many as there are processes at the start.",
        low=0,
        high=100_000,
    )
    profile: str = setting(
        "", 'Steps to trace, as "10:13", in profile/ of every step that trains. Empty: none.'
    )
    tracking: TrackingSettings = group(TrackingSettings)
    mesh: MeshSettings = group(MeshSettings)
    data: DataSettings = group(DataSettings)
    model: ModelSettings = group(ModelSettings)
    planning: PlanningSettings = group(PlanningSettings)
    use: UseSettings = group(UseSettings)
    prompts: PromptSettings = group(PromptSettings)
    warmup: WarmupSettings = group(WarmupSettings)
    summarizer: GRPOSettings = group(GRPOSettings)
    summaries: SummariesSettings = group(SummariesSettings)
    understanding: UnderstandingSettings = group(UnderstandingSettings)
    preferences: PreferenceSettings = group(PreferenceSettings)
    writer: WriterSettings = group(WriterSettings)
    chain: ChainSettings = group(ChainSettings)
    sasrec: SASRecSettings = group(SASRecSettings)
    bert4rec: BERT4RecSettings = group(BERT4RecSettings)
    gru4rec: GRU4RecSettings = group(GRU4RecSettings)
    molar: MolarSettings = group(MolarSettings)
    hm4sr: HM4SRSettings = group(HM4SRSettings)
    features: FeatureSettings = group(FeatureSettings)
    retrieval: RetrievalSettings = group(RetrievalSettings)
    sft: SFTSettings = group(SFTSettings)
    cached: CachedSettings = group(CachedSettings)
    evaluation: EvaluationSettings = group(EvaluationSettings)

    def check(self, name: str) -> None:
        steps_to_trace(self.profile)
        if not self.forms:
            raise UserError(f"{name}.forms={self.forms}: name one form or more")
        if self.mllm_srec and self.method != BOTH:
            raise UserError(
                f"{name}.mllm_srec has fields, but {name}.method={self.method!r}: they are of "
                f"method={BOTH}; leave them out"
            )
        if self.seeds and self.method == "scaling":
            raise UserError(
                f"{name}.seeds={self.seeds}: name none for a point of a scaling study, which has "
                "no table"
            )
        if len(set(self.sequential_models)) < len(self.sequential_models):
            raise UserError(
                f"{name}.also_sequential={self.also_sequential}: name each once, and not "
                f"{name}.sequential_model={self.sequential_model!r}"
            )
        if self.use.text_sft and not self.use.images:
            raise UserError(
                f"{name}.use.text_sft=True, but {name}.use.images=False: that is plain SFT, leave "
                f"{name}.use.text_sft False"
            )
        if self.understanding.mode == IMAGE and not self.use.images:
            raise UserError(
                f"{name}.understanding.mode={IMAGE!r}, but {name}.use.images=False shows none; set "
                "the mode to text"
            )
        self._check_tasks(name)
        self._check_sft(name)
        if self.evaluation.fuse and self.forms == ("joint",) and not self.evaluation.rerank:
            raise UserError(
                f"{name}.evaluation.fuse=True, but {name}.evaluation.rerank=0 reranks nothing; set "
                f"{name}.evaluation.rerank, for example to 100, or fuse to False"
            )
        trains = "joint" in self.forms and self.use.sft and self.tasks.get("next_keywords")
        if self.evaluation.generate and not trains:
            raise UserError(
                f"{name}.evaluation.generate={self.evaluation.generate}, but the task "
                f"next_keywords is not trained; give it a share in {name}.sft.tasks, with "
                f"{name}.use.multitask=True, {name}.use.sft=True and joint among {name}.forms"
            )

    def _check_sft(self, name: str) -> None:
        if self.use.sft:
            return
        if self.method != "mmsrarec":
            raise UserError(
                f"{name}.use.sft=False is an ablation of mmsrarec, but {name}.method="
                f"{self.method!r}; leave it out"
            )
        if "cached" in self.forms:
            raise UserError(
                f"{name}.use.sft=False, but {name}.forms={self.forms}: the score of cached items "
                f"is learned; set {name}.forms to ('joint',)"
            )

    def _check_tasks(self, name: str) -> None:
        if self.tasks.get("rank") and self.sft.negatives >= len(LETTERS):
            raise UserError(
                f"{name}.sft.negatives={self.sft.negatives}: the task rank has a letter for each "
                f"candidate, {len(LETTERS)} in all; lower it, or set {name}.sft.tasks.rank to 0"
            )
        if not self.use.summaries and not any(self.tasks[t] for t in self.tasks if t != "align"):
            raise UserError(
                f"{name}.sft.tasks gives only align a share, but {name}.use.summaries=False writes "
                "no keywords to align with; give another task a share"
            )
        rewarded = {name for name, weight in self.summarizer.weights.items() if weight}
        trains = self.method == "mmsrarec" and self.use.summaries and self.use.rewards
        if trains and not self.use.images and rewarded == {"image_contrastive"}:
            raise UserError(
                f"{name}.summarizer.weights: image_contrastive alone is not 0, but "
                f"{name}.use.images=False shows no images; give another reward a weight"
            )
        asking = [task for task in ASKING if self.warmup.tasks.get(task)]
        if asking and not self.understanding.questions:
            raise UserError(
                f"{name}.warmup.tasks.{asking[0]}={self.warmup.tasks[asking[0]]:g} teaches to "
                f"answer {name}.understanding.questions, but there are none; name some, or set it "
                "to 0"
            )

    @property
    def tasks(self) -> Mapping[str, float]:
        """Shares of the tasks that SFT trains."""
        return self.sft.tasks if self.use.multitask else {"pointwise": 1.0}

    @property
    def sequential_models(self) -> tuple[str, ...]:
        """All that are trained, the one that retrieves first."""
        return self.sequential_model, *self.also_sequential

    @property
    def headline(self) -> str:
        """The row of the table that the experiment is about."""
        return self.sequential_model if self.method == "sequential" else self.method

    def sequential(self, model: str) -> SequentialSettings:
        """The section of a sequential model."""
        return getattr(self, model)


def described(settings: Settings) -> dict[str, Any]:
    """All that changes a result, for people: what each step records, and what users state of
    themselves, of which step `data` has no record."""
    found = as_dict(settings)
    if fields := settings.data.user_fields:
        found["data"]["user_fields"] = fields
    return found


def shared(settings: Settings) -> dict[str, Any]:
    """What is equal in all runs that are compared user by user: data and candidates."""
    evaluation = as_dict(settings.evaluation)
    return {
        "data": as_dict(settings.data),
        "evaluation": {name: evaluation[name] for name in _SHARED},
    }
