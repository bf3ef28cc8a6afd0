"""What is compiled of an experiment: its model, and which steps of its method."""

import dataclasses
from pathlib import Path
from typing import Protocol

from mmsrec_jax.evaluation.settings import EvaluationSettings
from mmsrec_jax.hf import mapping, presets, tiny_init
from mmsrec_jax.hf.loading import ModelSettings
from mmsrec_jax.hf.processor import read_json
from mmsrec_jax.inference.settings import UnderstandingSettings
from mmsrec_jax.inputs.tastes import PreferenceSettings
from mmsrec_jax.inputs.understanding import BOTH_VQA
from mmsrec_jax.models.config import MLLMConfig
from mmsrec_jax.prompts.settings import PromptSettings
from mmsrec_jax.rl.settings import GRPOSettings
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import Section, setting
from mmsrec_jax.runtime.sharding import MeshSettings
from mmsrec_jax.training.pairs import CachedSettings
from mmsrec_jax.training.sft import FineTuneSettings, WriterSettings


@dataclasses.dataclass(frozen=True)
class PlanningSettings(Section):
    """What launch/compile.py reads beside the settings of the steps."""

    model: str = setting(
        "", "Published model, or a folder with a config.json, compiled while `model.path` is empty."
    )


class _Use(Protocol):
    @property
    def images(self) -> bool: ...
    @property
    def summaries(self) -> bool: ...
    @property
    def rewards(self) -> bool: ...
    @property
    def sft(self) -> bool: ...


class Planned(Protocol):
    """The settings of an experiment, as far as planning reads them."""

    @property
    def method(self) -> str: ...
    @property
    def forms(self) -> tuple[str, ...]: ...
    @property
    def mesh(self) -> MeshSettings: ...
    @property
    def model(self) -> ModelSettings: ...
    @property
    def planning(self) -> PlanningSettings: ...
    @property
    def use(self) -> _Use: ...
    @property
    def summarizer(self) -> GRPOSettings: ...
    @property
    def understanding(self) -> UnderstandingSettings: ...
    @property
    def preferences(self) -> PreferenceSettings: ...
    @property
    def writer(self) -> WriterSettings: ...
    @property
    def sft(self) -> FineTuneSettings: ...
    @property
    def evaluation(self) -> EvaluationSettings: ...
    @property
    def cached(self) -> CachedSettings: ...
    @property
    def prompts(self) -> PromptSettings: ...


def model_name(config: Planned) -> str:
    """Folder or published name, "" from scratch."""
    return config.model.path or config.planning.model


def model_config(config: Planned) -> MLLMConfig:
    """The model that `config` is about: config.model.path or else config.planning.model, either a
    folder or a published name; without them the one from scratch.

    Raises:
      UserError: neither a folder with a config.json nor a published name.
    """
    name = model_name(config)
    if not name:
        raw = tiny_init.hf_config(config.model.tiny, config.model.tiny.vocab_size)
        found = mapping.config_from_hf(raw)
    elif (path := Path(name) / "config.json").is_file():
        found = mapping.config_from_hf(read_json(path))
    elif name in presets.CONFIGS:
        found = presets.config(name)
    else:
        raise UserError(
            f"model {name!r}: no folder with a config.json, and none of "
            f"{', '.join(presets.CONFIGS)}"
        )
    return dataclasses.replace(found, remat=config.model.remat)


def is_taught(config: Planned) -> bool:
    """Whether a step teaches the model that is planned for to write about users."""
    return config.writer.teaches(is_pretrained=bool(model_name(config)))


def names(config: Planned) -> list[str]:
    """The steps of `config`, in the order of a run, that are worth compiling.

    Raises:
      UserError: no step of its method trains an MLLM.
    """
    if config.method == "scaling":
        return ["sft"]
    trained = ["sft"] if config.use.sft else []
    by_form = {"joint": [*trained, "rank"], "cached": ["cached", "catalog"]}
    of_forms = [name for form in config.forms for name in by_form[form]]
    if config.method == "mmsrarec":
        tuned = config.use.summaries and config.use.rewards
        return [*(["rollout", "grpo"] if tuned else []), *of_forms]
    if config.method == "mllm_srec":
        asks = config.use.images and config.understanding.mode == BOTH_VQA
        found = ["visual_answers"] if asks else []
        found += ["item_texts", *(["writer"] if is_taught(config) else []), "preferences"]
        return found + of_forms
    raise UserError(
        f"config.method={config.method!r}: a sequential recommender alone has no step that is "
        "compiled here; choose a config of MMSRARec or MLLM-SRec, or name --steps"
    )
