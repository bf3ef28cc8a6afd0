"""One point of a scaling study: data -> model -> SFT on the catalogue -> loss on held-out items.

The tasks are those of MMSRARec's warm-up (describe items, answer questions about them): what a
model from scratch learns of them goes on falling with its size, where the choices of users are
mostly chance. `evaluation.scaling` fits loss against compute over several such runs.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mmsrec_jax import sharding, startup
from mmsrec_jax.decoding.rows import per_row
from mmsrec_jax.evaluation.scaling import POINT, total_flops
from mmsrec_jax.files import write_text
from mmsrec_jax.inputs import pipeline
from mmsrec_jax.inputs.sources import WarmupSource
from mmsrec_jax.methods import common, mmsrarec
from mmsrec_jax.models import lora
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.progress import Progress
from mmsrec_jax.training import sft, weights
from mmsrec_jax.workdir import Stage

HELD_OUT = 0.2  # of the items
DRAWS = 4  # examples of a held-out item


def run(config: ConfigDict, workdir: Path, only: Sequence[str] | None = None) -> None:
    """Runs the stages of `config` in `workdir`, or those named in `only`.

    Raises:
      UserError: anything the user can put right, see the stages.
    """
    common.check(config)
    Run.run(config, workdir, only)


class Run(mmsrarec.Run):
    """One size of model."""

    def stages(self) -> list[Stage]:
        c = self.config
        model = {"model": c.model.to_dict(), "prompts": c.prompts.to_dict()}
        model["images"] = c.use.images
        tasks = {"tasks": c.warmup.tasks.to_dict(), "noise": c.warmup.noise}
        stages, base = [self.data_stage()], ["data"]
        if not c.model.path:
            stages.append(Stage("model", self.model_directory, model, base, alone=True))
            base = [*base, "model"]
        evaluation = {"evaluation": c.evaluation.to_dict()}
        return [
            *stages,
            Stage("sft", self.sft, {**model, **tasks, "sft": c.sft.to_dict()}, base),
            Stage("validation", self.validation, evaluation, [*base, "sft"]),
        ]

    def base_model(self, name: str, trainable: str = "lora") -> MLLM:
        if self.config.model.path:
            return self.pretrained(name, trainable)
        model = self._from_scratch()
        startup.report_model(name, model)
        return model

    def sft(self, directory: Path) -> None:
        """Visual instruction tuning on four fifths of the items."""
        c, counts = self.config.sft, Counter()
        model = self.base_model("sft", c.trainable)
        if c.trainable == "lora":
            model = self._with_adapters(model, c)
        items, _ = self._items()
        model = sft.train(
            c,
            model,
            self._batches(self._source(items, c.length), c, counts),
            name="sft",
            directory=directory,
            mesh=self.mesh,
            verdicts=self.prompting.chat.verdicts,
            profile=self.profile,
        )
        common.log_counts("sft", counts)
        weights.save(directory / mmsrarec.WEIGHTS, model, lora.trainable(c.trainable))

    def validation(self, directory: Path) -> None:
        """Mean -log p of target tokens of the same tasks on the other items: `point.json`."""
        c, evaluation = self.config.sft, self.config.evaluation
        model = self.base_model("validation", c.trainable)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        if c.trainable == "lora":
            model = self._with_adapters(model, c)
        weights.restore(self.workdir / "sft" / mmsrarec.WEIGHTS, model, lora.trainable(c.trainable))
        _, held_out = self._items()
        source = self._source(np.tile(held_out, DRAWS), evaluation.length)
        shard, shards = sharding.batch_share(self.mesh)
        dataset = pipeline.batches(
            source,
            batch_size=evaluation.batch_size,
            length=evaluation.length,
            patches=self._patches(evaluation.patches),
            shuffle=False,
            repeat=False,
            pack=False,
            workers=evaluation.workers,
            shard=shard,
            shards=shards,
        )
        progress = Progress("validation", len(source), unit="examples")
        rows = per_row(model, dataset, sft.row_sums, progress=progress, mesh=self.mesh)
        sums = np.concatenate([values for _, values in rows]).astype(np.float64)
        loss, weight = sums.sum(axis=0)
        log = (self.workdir / "sft" / "metrics.jsonl").read_text().splitlines()
        point = {"parameters": parameters, "flops": total_flops(map(json.loads, log))}
        point |= {"loss": loss / weight, "targets": int(weight)}
        write_text(directory / POINT, json.dumps(point, indent=1) + "\n")

    def _items(self) -> tuple[np.ndarray, np.ndarray]:
        """int[n] each: those trained on, those held out."""
        catalogue, _, _ = self.dataset
        order = np.random.default_rng(self.config.data.seed).permutation(len(catalogue))
        held_out = int(HELD_OUT * len(catalogue))
        return order[held_out:], order[:held_out]

    def _source(self, items: np.ndarray, length: int) -> WarmupSource:
        catalogue, _, _ = self.dataset
        return WarmupSource(
            catalogue,
            self.prompting,
            length=length,
            seed=self.config.sft.seed,
            tasks=self.config.warmup.tasks.to_dict(),
            image_attributes=self.config.prompts.image_attributes,
            noise=self.config.warmup.noise,
            rows=items,
        )
