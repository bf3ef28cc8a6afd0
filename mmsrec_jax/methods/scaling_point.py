"""One point of a scaling study: data -> model -> plain SFT from scratch -> held-out loss.

`evaluation.scaling` fits loss against compute over several such runs.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from mmsrec_jax.data import splits
from mmsrec_jax.evaluation.scaling_law import POINT, total_flops
from mmsrec_jax.inference.forward import per_row
from mmsrec_jax.inputs import pipeline
from mmsrec_jax.methods import common, mmsrarec
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.models import lora
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.runtime import sharding, startup
from mmsrec_jax.runtime.files import write_json
from mmsrec_jax.runtime.progress import Progress
from mmsrec_jax.runtime.settings import as_dict
from mmsrec_jax.runtime.workdir import Step
from mmsrec_jax.training import sft, weights


def run(config: Settings, workdir: Path, only: Sequence[str] | None = None) -> None:
    """Runs the steps of `config` in `workdir`, or those named in `only`.

    Raises:
      UserError: anything the user can put right, see the steps.
    """
    common.check(config)
    Run.run(config, workdir, only)


class Run(mmsrarec.Run):
    """One size of model."""

    def steps(self) -> list[Step]:
        c = self.config
        model = {"model": as_dict(c.model), "prompts": as_dict(c.prompts)}
        use = {"images": c.use.images, "multitask": c.use.multitask}
        steps, base = [self.data_step()], ["data"]
        if not c.model.path:
            settings = {**model, "images": c.use.images}
            steps.append(Step("model", self.model_directory, settings, base, alone=True))
            base = [*base, "model"]
        evaluation = {"evaluation": as_dict(c.evaluation)}
        return [
            *steps,
            Step("sft", self.plain_sft, {**model, "use": use, "sft": as_dict(c.sft)}, base),
            Step("validation", self.validation, evaluation, [*base, "sft"]),
        ]

    def base_model(self, name: str, trainable: str = "lora") -> MLLM:
        if self.config.model.path:
            return self.pretrained(name, trainable)
        model = self._from_scratch()
        startup.report_model(name, model)
        return model

    def validation(self, directory: Path) -> None:
        """Mean -log p of target tokens, of the same tasks on validation targets: `point.json`."""
        c, evaluation = self.config.sft, self.config.evaluation
        model = self.base_model("validation", c.trainable)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        if c.trainable == "lora":
            model = self._with_adapters(model, c)
        kind = lora.trainable(c.trainable)
        weights.restore(self.workdir / "sft" / mmsrarec.WEIGHTS, model, kind, self.mesh)
        _, _, split = self.dataset
        targets = splits.subset(split.validation, evaluation.users, evaluation.seed)
        shard, shards = sharding.process_batch_shard(self.mesh)
        dataset = pipeline.batches(
            self._recommend_source(targets, with_context=False),
            batch_size=evaluation.batch_size,
            length=c.length,
            patches=self._patches(c.patches),
            answers=c.answers,
            targets=c.targets,
            shuffle=False,
            repeat=False,
            pack=False,
            workers=evaluation.workers,
            shard=shard,
            shards=shards,
        )
        progress = Progress("validation", len(targets), unit="targets")
        rows = per_row(model, dataset, sft.row_sums, progress=progress, mesh=self.mesh)
        sums = np.concatenate([values for _, values in rows]).astype(np.float64)
        loss, weight = sums.sum(axis=0)
        log = (self.workdir / "sft" / "metrics.jsonl").read_text().splitlines()
        point = {"parameters": parameters, "flops": total_flops(map(json.loads, log))}
        point |= {"loss": loss / weight, "targets": len(targets)}
        write_json(directory / POINT, point)
