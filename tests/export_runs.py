"""Finished runs for the export tests: a step as training leaves it, without the training."""

import shutil
from pathlib import Path

import jax
import numpy as np
from flax import nnx

import mmsrec_jax
from mmsrec_jax.hf.exporting import Adapters
from mmsrec_jax.methods.base_model import trained_by
from mmsrec_jax.models import lora
from mmsrec_jax.models import trainable as trainables
from mmsrec_jax.runtime.workdir import Step, run_steps
from mmsrec_jax.training import weights

RANK, ALPHA = 2, 6.0
_LORA = {"lora_rank": RANK, "lora_alpha": ALPHA}


def trained_model(base: Path, trainable: str, dtype: str = "float32"):
    """The model of `base` with random adapters, and with what else is trained moved."""
    model, rng = mmsrec_jax.load(base, dtype), np.random.default_rng(0)
    moved = [part for part in trainables.parts(trainable) if part != "lora"]
    for part in moved:
        state = nnx.state(model, trainables.filter_of(part))
        nnx.update(model, jax.tree.map(lambda leaf: leaf * 1.25, state))
    if "lora" in trainables.parts(trainable):
        lora.add(model, RANK, ALPHA, rngs=nnx.Rngs(0))
        for linear in lora.adapted(model).values():
            linear.lora_b[...] = rng.normal(0, 0.1, linear.lora_b.shape).astype(np.float32)
    return model


def adapters_of(model) -> Adapters:
    """The adapters of a model in memory, as the exporter takes them."""
    factors = {
        f"text.layers.{target}": (np.asarray(linear.lora_a[...]), np.asarray(linear.lora_b[...]))
        for target, linear in lora.adapted(model).items()
    }
    return Adapters(factors, ALPHA)


def pretrained_run(workdir: Path, base: Path, trainable: str, max_pixels: int = 0):
    """A run whose sft started from the Hugging Face directory `base`; the model it ended with."""
    model = trained_model(base, trainable)

    def sft(directory):
        kind = trainables.filter_of(trainable)
        weights.save(trained_by(workdir, directory.name), model, kind)

    start = {"path": str(base), "dtype": "float32", "max_pixels": max_pixels}
    config = {"model": start, "sft": _LORA | {"trainable": trainable}}
    run_steps(workdir, [Step("sft", sft, config)])
    return model


def scratch_run(workdir: Path, base: Path):
    """A run from scratch: shape in model/, warmed up as `base`, adapters for the summarizer."""
    model = trained_model(base, "lora")
    config = {"model": {"path": "", "dtype": "float32", "max_pixels": 0}}

    def shape(directory):
        for name in ("config.json", "preprocessor_config.json"):
            shutil.copy(base / name, directory)

    def warmup(directory):
        weights.save(trained_by(workdir, directory.name), mmsrec_jax.load(base), nnx.Param)

    def summarizer(directory):
        weights.save(trained_by(workdir, directory.name), model, nnx.LoRAParam)

    run_steps(
        workdir,
        [
            Step("model", shape, config),
            Step("warmup", warmup, config | {"warmup": {"trainable": "full"}}, ["model"]),
            Step("summarizer", summarizer, config | {"summarizer": _LORA}, ["model", "warmup"]),
        ],
    )
    return model
