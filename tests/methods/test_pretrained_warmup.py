"""The whole method from a tiny pretrained directory whose connector a warm-up trains first."""

import json

import jax
import launched
import numpy as np
import pytest
from flax import nnx

import mmsrec_jax
from mmsrec_jax.data import toyshop
from mmsrec_jax.data.toyshop import ToyshopSettings
from mmsrec_jax.hf import exporting, tiny_init
from mmsrec_jax.methods.scorer import Scorer
from mmsrec_jax.models import lora, trainable
from mmsrec_jax.prompts import TEMPLATES, corpus
from mmsrec_jax.runtime.sharding import make_mesh
from mmsrec_jax.training.weights import Stored

CHANGES = {
    "data.toyshop.num_users": 80, "data.toyshop.num_items": 40, "data.toyshop.num_groups": 3,
    "warmup.pretrained": True, "warmup.trainable": "connector", "warmup.steps": 4,
    "warmup.warmup_steps": 1, "warmup.checkpoint_every": 2, "warmup.batch_size": 4,
    "summarizer.steps": 2, "summarizer.batch_size": 4, "summarizer.num_generations": 2,
    "summarizer.micro_batch": 8, "summarizer.distractors": 2, "summarizer.max_new_tokens": 6,
    "summarizer.prompt_length": 40, "summaries.batch_size": 8,
    "sasrec.steps": 10, "sasrec.evaluate_every": 5, "sasrec.batch_size": 8, "sasrec.dim": 8,
    "sft.trainable": "connector+lora", "sft.steps": 3, "sft.warmup_steps": 1, "sft.batch_size": 4,
    "sft.lora_rank": 2, "sft.length": 192, "sft.rows": 200,
    "cached.trainable": "connector+lora", "cached.steps": 4, "cached.evaluate_every": 4,
    "cached.warmup_steps": 1, "cached.num_users": 4, "cached.num_items": 8, "cached.lora_rank": 2,
    "cached.validation_rows": 8, "cached.score_users": 8, "cached.score_items": 40,
    "evaluation.users": 16, "evaluation.batch_size": 8, "evaluation.length": 480,
}  # fmt: skip
SIZES = tiny_init.TinySettings(
    vocab_size=600, hidden=24, heads=2, kv_heads=1, layers=2, intermediate=32,
    vision_hidden=16, vision_layers=1, vision_heads=2, vision_intermediate=24,
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(directory of the pretrained model, workdir)."""
    folder = tmp_path_factory.mktemp("pretrained")
    items, _, _ = toyshop.generate(ToyshopSettings(num_users=80, num_items=40, num_groups=3))
    texts = [*corpus(TEMPLATES["terse"]) * 4, *(f" {item.text['title']}" for item in items)]
    tiny_init.write_directory(folder / "shape", SIZES, texts, [])
    model = tiny_init.init(
        folder / "shape", dtype="float32", seed=3, mesh=make_mesh(devices=jax.devices()[:1])
    )
    source = exporting.of_model(model)
    exporting.write_model(folder / "model", source, folder / "shape", dtype="float32")
    flags = [f"--config.{name}={value}" for name, value in CHANGES.items()]
    status, said = launched.run(
        "launch/train.py", "--config=configs/quickstart.py", f"--workdir={folder / 'run'}",
        f"--config.model.path={folder / 'model'}", *flags, log=folder / "log", timeout=1500,
    )  # fmt: skip
    assert status == 0, said[-4000:]
    return folder / "model", folder / "run"


def parameters(model, kind="full"):
    flat = nnx.to_flat_state(nnx.state(model, trainable.filter_of(kind)))
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in flat}


def test_every_step_ran_and_those_that_read_the_model_read_the_warm_up(finished):
    _, run = finished
    table = json.loads((run / "table.json").read_text())
    assert {"plain_sft", "mmsrarec"} <= {row["system"] for row in table}
    for step in ("summarizer", "summaries", "plain_sft", "cached"):
        assert "warmup" in json.loads((run / step / "step.json").read_text())["inputs"]
    assert not (run / "model").exists()


def test_the_warm_up_trained_the_connector_and_nothing_else(finished):
    directory, run = finished
    before = parameters(mmsrec_jax.load(directory), "connector")
    trained = Stored(run / "warmup" / "weights")
    assert set(trained) == set(before)
    assert all((trained.read(path) != value).any() for path, value in before.items())


def test_what_is_exported_is_the_model_that_was_scored(finished, tmp_path):
    """After stage 3, and after the warm-up: the pretrained model with its connector."""
    directory, run = finished
    for step, flags in {"cached": (), "warmup": ("--step=warmup",)}.items():
        status, said = launched.run(
            "launch/export.py", f"--workdir={run}", f"--out={tmp_path / step}", "--merge",
            *flags, log=tmp_path / f"{step}.log",
        )  # fmt: skip
        assert status == 0, said
    base, given = parameters(mmsrec_jax.load(tmp_path / "warmup")), mmsrec_jax.load(directory)
    warmed_up = Stored(run / "warmup" / "weights")
    for path, value in parameters(given).items():
        wanted = warmed_up.read(path) if path in set(warmed_up) else value
        np.testing.assert_array_equal(base[path], wanted)

    scorer = Scorer(run, make_mesh(devices=jax.devices()[:1]))
    ids = scorer.catalog.ids.tolist()
    assert np.isfinite(scorer.scores(ids[:3], ids[3:7])).all()
    ours = scorer._model
    start = scorer._run.base.load("test")  # what GRPO's reference and SFT begin with
    for path, value in parameters(start).items():
        np.testing.assert_array_equal(value, base[path])
    lora.merge(ours)
    exported, moved = parameters(mmsrec_jax.load(tmp_path / "cached")), set()
    for path, value in parameters(ours).items():
        np.testing.assert_allclose(exported[path], value, atol=1e-6)
        if (exported[path] != base[path]).any():
            moved.add(path)
    adapted = {f"text.layers.{target}.kernel" for target in lora.TARGETS}
    assert moved == adapted | set(warmed_up)
