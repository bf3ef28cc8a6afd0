"""A scaling study by its two commands, and the loss of one of its runs computed anew."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import launched
import numpy as np
import pytest
import step_records
from flax import nnx

from configs import scaling as experiment
from mmsrec_jax.data import splits
from mmsrec_jax.inputs import pipeline
from mmsrec_jax.methods import scaling_point
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.runtime.files import write_json
from mmsrec_jax.runtime.settings import from_config
from mmsrec_jax.runtime.sharding import make_mesh

ROOT = Path(__file__).resolve().parents[2]
SIZES = ("16x1", "48x2")
MADE_UP = ("32x1", "64x2")  # the law needs four
TINY = {
    "data.toyshop.num_users": 60, "data.toyshop.num_items": 30, "data.toyshop.num_groups": 3,
    "sft.steps": 4, "sft.warmup_steps": 1, "sft.batch_size": 4, "sft.log_every": 2,
    "sft.checkpoint_every": 4, "evaluation.users": 10, "evaluation.batch_size": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scaling")
    flags = [f"--config.{name}={value}" for name, value in TINY.items()]
    started = {
        size: launched.start(
            "launch/train.py", f"--config=configs/scaling.py:size={size}",
            f"--workdir={folder / size}", *flags, log=folder / f"{size}.log",
        )
        for size in SIZES
    }  # fmt: skip
    for size, process in started.items():
        process.join(timeout=400)
        assert process.exitcode == 0, (folder / f"{size}.log").read_text()[-3000:]
    return [folder / size for size in SIZES]


@pytest.fixture(scope="module")
def study(runs):
    """The runs by compute, with made-up ones between and above them."""
    small, large = runs
    between, above = (small.with_name(size) for size in MADE_UP)
    for copy, flops in (
        (between, (point(small)["flops"] * point(large)["flops"]) ** 0.5),
        (above, 2 * point(large)["flops"]),
    ):
        shutil.copytree(large, copy)
        config = json.loads((copy / "validation" / "step.json").read_text())["config"]
        write_json(copy / "validation" / "point.json", point(large) | {"flops": flops})
        step_records.write(copy / "validation", config)
    return [small, between, large, above]


def point(run):
    return json.loads((run / "validation" / "point.json").read_text())


def test_the_held_out_loss_is_the_mean_over_target_tokens(runs):
    """In float64 from whole logits, all targets in one batch; the run had the last one half full
    and never more than a few rows of logits."""
    config = experiment.get_config(f"size={SIZES[1]}").unlock()
    config.update_from_flattened_dict(TINY)
    config = from_config(Settings, config)
    run = scaling_point.ScalingPoint(config, runs[1], make_mesh())
    model = run.base.trained("again", "sft")
    _, _, split = run.dataset
    targets = splits.subset(split.validation, config.evaluation.users, config.evaluation.seed)
    (batch,) = pipeline.batches(
        run.plain_source(targets), batch_size=16,
        length=config.sft.length, patches=config.sft.patches, answers=config.sft.answers,
        targets=config.sft.targets, shuffle=False, repeat=False, pack=False,
    )  # fmt: skip
    graphdef, state = nnx.split(model)

    @jax.jit
    def logits_of(state, batch):
        model = nnx.merge(graphdef, state)
        return model.unembed(model(batch))

    logits = np.asarray(logits_of(state, batch), np.float64)
    highest = logits.max(-1, keepdims=True)
    logp = logits - highest - np.log(np.exp(logits - highest).sum(-1, keepdims=True))
    rows, at = np.nonzero(batch.loss_weights)
    weight = batch.loss_weights[rows, at].astype(np.float64)
    wanted = -(weight * logp[rows, at - 1, batch.tokens[rows, at]]).sum() / weight.sum()
    assert set(rows) == set(range(len(targets)))
    found = point(runs[1])
    assert found["loss"] == pytest.approx(wanted, rel=1e-5)
    assert found["targets"] == len(targets) == 10
    assert found["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(state))


def test_the_command_fits_the_runs(study):
    done = subprocess.run(
        [sys.executable, "launch/scaling.py", *study[::-1], "--predict=1e12", "--resamples=5"],
        cwd=ROOT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    places = [done.stdout.index(f"\n{run.name} ") for run in study]
    assert places == sorted(places)  # by compute
    assert "predicted at 1e+12 FLOPs" in done.stdout
    found = json.loads((study[0].parent / "scaling.json").read_text())
    assert found["points"] == [{"name": run.name, **point(run)} for run in study]
    for suffix in ("png", "svg"):
        assert (study[0].parent / f"scaling.{suffix}").stat().st_size
