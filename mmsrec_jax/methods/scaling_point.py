"""One point of a scaling study: data -> model -> plain SFT from scratch -> held-out loss.

`evaluation.scaling_law` fits loss against compute over several such runs.
"""

import json
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from mmsrec_jax.data import splits
from mmsrec_jax.evaluation.scaling_law import POINT, total_flops
from mmsrec_jax.inference.forward import in_order, per_row
from mmsrec_jax.methods.base_model import BaseModel
from mmsrec_jax.methods.mllm import MLLMExperiment
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.files import write_json
from mmsrec_jax.runtime.progress import Progress
from mmsrec_jax.runtime.settings import as_dict
from mmsrec_jax.runtime.workdir import Step
from mmsrec_jax.training import sft


class ScalingPoint(MLLMExperiment):
    """One size of model. From scratch it starts at random weights: a warm-up would be compute that
    the point does not count."""

    def make_base_model(self) -> BaseModel:
        if self.config.warmup.pretrained:
            raise UserError(
                "config.warmup.pretrained=True: a point of a scaling study has no warm-up; leave "
                "it False"
            )
        return BaseModel(self.config, self.workdir, self.mesh, warmed_up=False)

    def steps(self) -> list[Step]:
        c, base = self.config, self.base_inputs()
        tuned = {**self.base.record(), "prompts": as_dict(c.prompts), "sft": as_dict(c.sft)}
        tuned["use"] = {"images": c.use.images, "multitask": c.use.multitask}
        evaluation = {"evaluation": as_dict(c.evaluation)}
        return [
            self.data_step(),
            *self.base_steps(),
            Step("sft", self.sft, tuned | self.validation_record(), base),
            Step("validation", self.validation, evaluation, [*base, "sft"]),
        ]

    def sft(self, directory: Path) -> None:
        """Plain SFT."""
        source = self.plain_source(self.training_targets())
        self.fine_tune("sft", source, directory, lambda rows: self.plain_context())

    def validation(self, directory: Path) -> None:
        """Mean -log p of target tokens, of the same tasks on validation targets: `point.json`."""
        c, evaluation = self.config.sft, self.config.evaluation
        model = self.base.trained("validation", "sft")
        split = self.dataset.split
        targets = splits.subset(split.validation, evaluation.users, evaluation.seed)
        source = self.plain_source(targets)
        dataset = in_order(
            source,
            self.mesh,
            batch_size=evaluation.batch_size,
            length=c.length,
            patches=self.patches_of_a_row(source, c.patches),
            answers=c.answers,
            targets=c.targets,
            workers=evaluation.workers,
        )
        progress = Progress("validation", len(targets), unit="targets")
        rows = per_row(model, dataset, sft.row_sums, progress=progress, mesh=self.mesh)
        sums = np.concatenate([values for _, values in rows]).astype(np.float64)
        loss, weight = sums.sum(axis=0)
        log = (self.workdir / "sft" / "metrics.jsonl").read_text().splitlines()
        point = {"parameters": _parameters(model), "flops": total_flops(map(json.loads, log))}
        point |= {"loss": loss / weight, "targets": len(targets)}
        write_json(directory / POINT, point)


def _parameters(model: MLLM) -> int:
    """Parameters of the model without adapters."""
    state = nnx.state(model, nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam)))
    return sum(leaf.size for leaf in jax.tree.leaves(state))
