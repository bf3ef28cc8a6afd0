"""The model that every step starts from, what a step trains of it, and how that is read back.

The base model is a pretrained one (`config.model.path`) or one from scratch, as the steps `model`
and `warmup` left it. A step trains all of its weights or adapters beside them, leaves in its folder
`weights` what it trained, and nothing else of the model.
"""

from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from mmsrec_jax.hf import loading, tiny_init
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.models import lora
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import startup
from mmsrec_jax.runtime.settings import as_dict
from mmsrec_jax.training import weights
from mmsrec_jax.training.state import param_dtype

MODEL, WARMUP = "model", "warmup"  # the steps that make a base model from scratch
SECTIONS = {"warmup": "warmup", "summarizer": "summarizer", "plain_sft": "sft", "sft": "sft"}
"""Step that trains -> the section of the settings that says how."""

_WEIGHTS = "weights"


class BaseModel:
    """The base model of one run.

    Args:
      config: the run's settings: `model`, and the section of each step that trains.
      workdir: of the run.
      mesh: where models are placed.
      warmed_up: a model from scratch has the weights of step `warmup`; else random ones.
    """

    def __init__(self, config: Settings, workdir: Path, mesh: Mesh, *, warmed_up: bool = True):
        self._config, self._workdir, self._mesh = config, workdir, mesh
        self._warmed_up = warmed_up

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
        if self.is_pretrained:
            return []
        return [MODEL, WARMUP] if self._warmed_up else [MODEL]

    def record(self) -> dict[str, Any]:
        """What the record of a step that uses it must hold, so that `launch/export.py` finds it.

        The record of a step that trains holds its section beside this, under the section's name.
        """
        return {"model": as_dict(self._config.model)}

    def load(self, name: str, trainable: str = "lora") -> MLLM:
        """The base model, reported under `name`; trainable: what will be trained of it."""
        c = self._config.model
        if self.is_pretrained:
            dtype = param_dtype(trainable, c.dtype)
            model = loading.load(self.path, c.dtype, self._mesh, param_dtype=dtype, remat=c.remat)
        else:
            model = self._random()
            if self._warmed_up:
                weights.restore(trained_by(self._workdir, WARMUP), model, nnx.Param, self._mesh)
        startup.report_model(name, model)
        return model

    def to_train(self, step: str) -> MLLM:
        """The model that `step` begins with: with fresh adapters if they are what it trains.

        Step `warmup` begins with random weights and trains all of them.
        """
        if step == WARMUP:
            model = self._random()
            startup.report_model(step, model)
            return model
        return self._with_adapters(self.load(step, self._trainable(step)), step)

    def trained(self, name: str, step: str) -> MLLM:
        """The model that `step` ended with, reported under `name`.

        Raises:
          UserError: the step has left no weights, or they are of another model.
        """
        kind = self._trainable(step)
        model = self._with_adapters(self.load(name, kind), step)
        weights.restore(trained_by(self._workdir, step), model, lora.trainable(kind), self._mesh)
        return model

    def save(self, step: str, model: MLLM) -> None:
        """Writes what `step` trained of `model` to its folder, atomically."""
        kind = lora.trainable(self._trainable(step))
        weights.save(trained_by(self._workdir, step), model, kind)

    def _random(self) -> MLLM:
        c = self._config.model
        return tiny_init.init(self.path, dtype=c.dtype, seed=c.seed, mesh=self._mesh)

    def _trainable(self, step: str) -> str:
        """ "lora" or "full"; GRPO always trains adapters, the warm-up always every weight."""
        if step == WARMUP:
            return "full"
        return getattr(getattr(self._config, SECTIONS[step]), "trainable", "lora")

    def _with_adapters(self, model: MLLM, step: str) -> MLLM:
        if self._trainable(step) == "lora":
            c = getattr(self._config, SECTIONS[step])
            lora.add(model, c.lora_rank, c.lora_alpha, rngs=nnx.Rngs(c.seed))
        return model


def trained_by(workdir: Path, step: str) -> Path:
    """The folder of the weights that `step` trained."""
    return workdir / step / _WEIGHTS


def base_path(workdir: Path, model_path: str) -> Path:
    """The Hugging Face directory of a run's base model; `model_path`: `config.model.path`."""
    return Path(model_path) if model_path else workdir / MODEL
