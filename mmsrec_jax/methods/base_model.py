"""The model that every step starts from, what a step trains of it, and how that is read back.

The base model is a pretrained one (`config.model.path`) or one from scratch (step `model`), as step
`warmup` left it where there is one. A step trains adapters, the connector, both, or every weight
(`models.trainable`), leaves in its folder `weights` what it trained, and nothing else of the model.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from mmsrec_jax.hf import loading, tiny_init
from mmsrec_jax.hf.mapping import config_from_hf
from mmsrec_jax.hf.processor import read_json
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.models import lora
from mmsrec_jax.models import trainable as trainables
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.rl.settings import GRPOSettings
from mmsrec_jax.runtime import digests, startup
from mmsrec_jax.runtime.buckets.given import local
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import as_dict
from mmsrec_jax.training import weights
from mmsrec_jax.training.pairs import CachedSettings
from mmsrec_jax.training.sft import FineTuneSettings

MODEL, WARMUP = "model", "warmup"  # the steps that make a base model
SFT = "sft"  # the step that an ablation leaves out
SECTIONS = {
    "warmup": "warmup", "summarizer": "summarizer", "plain_sft": "sft", "text_sft": "sft",
    "sft": "sft", "cached": "cached", "writer": "writer", "chain_sft": "sft",
    "chain_cached": "cached",
}  # fmt: skip
"""Step that trains -> the section of the settings that says how."""

_WEIGHTS = "weights"
_FILES = "model_files"  # in the record of a step


class BaseModel:
    """The base model of one run.

    Args:
      config: the run's settings: `model`, and the section of each step that trains.
      workdir: of the run.
      mesh: where models are placed.
      warmed_up: False: there is no step `warmup`, whatever the settings say.
    """

    def __init__(self, config: Settings, workdir: Path, mesh: Mesh, *, warmed_up: bool = True):
        self._config, self._workdir, self._mesh = config, workdir, mesh
        self._warmed_up = warmed_up and (not self.is_pretrained or config.warmup.pretrained)

    @property
    def is_pretrained(self) -> bool:
        return bool(self._config.model.path)

    @property
    def path(self) -> Path:
        """The Hugging Face directory of its tokenizer and its shape."""
        return base_path(self._workdir, self._config.model.path)

    @property
    def steps(self) -> list[str]:
        """Names of the steps that make it."""
        made = [] if self.is_pretrained else [MODEL]
        return [*made, WARMUP] if self._warmed_up else made

    def record(self) -> dict[str, Any]:
        """What the record of a step that uses it must hold, so that `launch/export.py` finds it.

        The record of a step that trains holds its section beside this, under the section's name.
        """
        record = {"model": as_dict(self._config.model)}
        return record | ({_FILES: self._files} if self.is_pretrained else {})

    @functools.cached_property
    def _files(self) -> dict[str, Any]:
        return model_files(self.path)

    def settings(self, step: str) -> FineTuneSettings | CachedSettings | GRPOSettings:
        """How `step` trains: its section. The warm-up of a model from scratch trains every weight,
        whatever its section says."""
        found = getattr(self._config, SECTIONS[step])
        if step == WARMUP and not self.is_pretrained:
            return dataclasses.replace(found, trainable="full")
        return found

    def check(self, step: str, *, has_images: bool = True) -> None:
        """Stops early when `step` would train a connector that is not there, or that sees no image
        (UserError); has_images: whether an item has one, as far as that is known."""
        kind, field = self._trainable(step), f"config.{SECTIONS[step]}.trainable"
        if "connector" not in trainables.parts(kind):
            return
        reasons = {
            "no item has an image": not has_images,
            "config.use.images=False shows none": not self._config.use.images,
            f"step {step} shows none": step == "text_sft",
            f"config.{SECTIONS[step]}.patches=0 leaves none room": not self.settings(step).patches,
        }
        for reason in (reason for reason, holds in reasons.items() if holds):
            raise UserError(
                f"{field}={kind!r}: a connector learns from images, but {reason}; train 'lora' or "
                "'full'"
            )
        if not self.is_pretrained:
            return
        if config_from_hf(read_json(self.path / "config.json")).vision is None:
            raise UserError(
                f"{field}={kind!r}: the model of {self.path} reads text only and has no connector; "
                "train 'lora' or 'full'"
            )

    def load(self, name: str, trainable: str = "lora") -> MLLM:
        """The base model, reported under `name`; trainable: what will be trained of it.

        Adapters of a warm-up are merged into it.
        """
        model = self._initial(trainable)
        if self._warmed_up:
            self._restore(model, WARMUP)
            lora.merge(model)
        startup.report_model(name, model)
        return model

    def to_train(self, step: str) -> MLLM:
        """The model that `step` begins with, with fresh adapters if it trains some.

        Step `warmup` begins with the pretrained weights, or with random ones.
        """
        kind = self._trainable(step)
        if step != WARMUP:
            model = self.load(step, kind)
        else:
            model = self._initial(kind)
            startup.report_model(step, model)
        self._add_adapters(model, step)
        return model

    def trained(self, name: str, step: str) -> MLLM:
        """The model that `step`, which is not the warm-up, ended with, reported under `name`.

        Step `sft` ends with the model that it began with where `config.use.sft` is False.

        Raises:
          UserError: the step has left no weights, or they are of another model.
        """
        if step == SFT and not self._config.use.sft:
            return self.load(name)
        model = self.load(name, self._trainable(step))
        self._restore(model, step)
        return model

    def save(self, step: str, model: MLLM) -> None:
        """Writes what `step` trained of `model` to its folder, atomically."""
        kind = trainables.filter_of(self._trainable(step))
        weights.save(trained_by(self._workdir, step), model, kind)

    def _initial(self, trainable: str) -> MLLM:
        """The pretrained model, or a random one."""
        c = self._config.model
        if self.is_pretrained:
            return loading.load(self.path, c.dtype, self._mesh, trainable=trainable, remat=c.remat)
        return tiny_init.init(self.path, dtype=c.dtype, seed=c.seed, mesh=self._mesh)

    def _restore(self, model: MLLM, step: str) -> None:
        """Puts into `model` what `step` trained."""
        self._add_adapters(model, step)
        kind = trainables.filter_of(self._trainable(step))
        weights.restore(trained_by(self._workdir, step), model, kind, self._mesh)

    def _trainable(self, step: str) -> str:
        """One of `trainable.KINDS`; GRPO always trains adapters."""
        return getattr(self.settings(step), "trainable", "lora")

    def _add_adapters(self, model: MLLM, step: str) -> None:
        if "lora" in trainables.parts(self._trainable(step)):
            c = self.settings(step)
            lora.add(model, c.lora_rank, c.lora_alpha, rngs=nnx.Rngs(c.seed))


def model_files(path: Path) -> dict[str, list[Any]]:
    """Digests of the files of a Hugging Face directory (`digests.of_input`): other weights or
    another tokenizer under the same path make another model."""
    kinds = (".json", ".safetensors", ".model", ".txt", ".jinja")
    return digests.of_inputs((p for p in path.glob("*") if p.suffix in kinds and p.is_file()), path)


def check_unchanged(record: Mapping[str, Any], step: str, path: Path) -> None:
    """Raises UserError when a pretrained base model is no longer the one that a step had, by the
    step's record."""
    had, has = record.get(_FILES), model_files(path)
    if had is None or had == has:
        return
    name = min(name for name in had.keys() | has.keys() if had.get(name) != has.get(name))
    raise UserError(
        f"{path / name}: not what step {step} was made with; put it back, or run launch/train.py "
        "with this --workdir again"
    )


def trained_by(workdir: Path, step: str) -> Path:
    """The folder of the weights that `step` trained."""
    return workdir / step / _WEIGHTS


def base_path(workdir: Path, model_path: str) -> Path:
    """The Hugging Face directory of a run's base model; `model_path`: `config.model.path`."""
    return local(model_path) if model_path else workdir / MODEL
