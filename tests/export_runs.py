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
    return change(mmsrec_jax.load(base, dtype), trainable)


def change(model, trainable: str, seed: int = 0):
    """As if trained, in place."""
    rng = np.random.default_rng(seed)
    moved = [part for part in trainables.parts(trainable) if part != "lora"]
    for part in moved:
        state = nnx.state(model, trainables.filter_of(part))
        nnx.update(model, jax.tree.map(lambda leaf: leaf * 1.25, state))
    if "lora" in trainables.parts(trainable):
        if not lora.adapted(model):
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


def pretrained_run(
    workdir: Path, base: Path, trainable: str, max_pixels: int = 0, warmup: str = ""
):
    """A run whose sft started from the Hugging Face directory `base`, after a warm-up of the kind
    `warmup` if one is named; the model it ended with."""
    start = {"path": str(base), "dtype": "float32", "max_pixels": max_pixels}
    model, steps = mmsrec_jax.load(base), []

    def step(name: str, kind: str, seed: int, inputs: tuple[str, ...]) -> Step:
        def run(directory):
            change(model, kind, seed)
            weights.save(trained_by(workdir, name), model, trainables.filter_of(kind))
            if name == "warmup":
                lora.merge(model)

        return Step(name, run, {"model": start, name: _LORA | {"trainable": kind}}, inputs)

    if warmup:
        steps.append(step("warmup", warmup, 1, ()))
    steps.append(step("sft", trainable, 0, tuple(step.name for step in steps)))
    run_steps(workdir, steps)
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
