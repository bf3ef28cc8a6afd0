"""A run's model by step and flags, and the mistakes: one line each, and nothing written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import export_runs
import hub
import jax
import numpy as np
import pytest
import step_records
import xla_flags
from flax import nnx
from huggingface_hub import ModelCard
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

import mmsrec_jax
from mmsrec_jax.hf.processor import ImageProcessor
from mmsrec_jax.methods.export import export
from mmsrec_jax.models import lora
from mmsrec_jax.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "qwen2_5_vl"


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("adapted")
    return workdir, export_runs.pretrained_run(workdir, GOLDEN, "lora")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("full")
    return workdir, export_runs.pretrained_run(workdir, GOLDEN, "full")


def same(model, directory, atol=0.0):
    ours, theirs = (jax.tree.leaves(nnx.state(m)) for m in (model, mmsrec_jax.load(directory)))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def test_every_weight_trained(full, tmp_path):
    workdir, model = full
    export(workdir, tmp_path / "out")
    same(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


def test_adapters_on_a_model_from_scratch(tmp_path):
    model = export_runs.scratch_run(tmp_path / "run", GOLDEN)
    export(tmp_path / "run", tmp_path / "base", step="warmup")
    same(mmsrec_jax.load(GOLDEN), tmp_path / "base")
    export(tmp_path / "run", tmp_path / "merged", step="summarizer", merge=True)
    lora.merge(model)
    same(model, tmp_path / "merged", atol=1e-6)
    export(tmp_path / "run", tmp_path / "peft", step="summarizer", adapter_only=True)
    raw = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert raw["base_model_name_or_path"] is None and raw["r"] == export_runs.RANK

    step_records.change(tmp_path / "run" / "warmup", warmup__seed=5)
    with pytest.raises(UserError, match="step warmup has run again since step summarizer"):
        export(tmp_path / "run", tmp_path / "again", step="summarizer", merge=True)


def test_the_processor_keeps_the_bound_that_the_run_had(tmp_path):
    given = ImageProcessor.from_pretrained(GOLDEN)
    for bound in (given.min_pixels // 2, given.max_pixels // 2):
        workdir = tmp_path / str(bound)
        export_runs.pretrained_run(workdir / "run", GOLDEN, "lora", max_pixels=bound)
        export(workdir / "run", workdir / "whole", merge=True)
        export(workdir / "run", workdir / "adapters", adapter_only=True)
        for out in ("whole", "adapters"):
            found = ImageProcessor.from_pretrained(workdir / out)
            assert (found.min_pixels, found.max_pixels) == (min(bound, given.min_pixels), bound)
            theirs = Qwen2VLImageProcessorPil.from_pretrained(workdir / out)
            grid = theirs(Image.new("RGB", (90, 50)), return_tensors="np")["image_grid_thw"][0, 1:]
            assert found.grid(50, 90) == tuple(grid)


def test_a_model_card_that_the_hub_reads_and_no_stray_files(adapted, tmp_path):
    workdir = Path(shutil.copytree(adapted[0], tmp_path / "run"))
    table = [{"system": "mmsrarec", "protocol": "full", "users": 9, "ndcg@10": 0.25}]
    (workdir / "table.json").write_text(json.dumps(table))
    named = {"license": "apache-2.0", "base_model": "Qwen/Qwen2.5-VL-3B-Instruct"}
    export(workdir, tmp_path / "whole", merge=True, **named)
    export(workdir, tmp_path / "adapters", adapter_only=True)
    whole, adapters = (
        ModelCard.load(tmp_path / name / "README.md") for name in ("whole", "adapters")
    )
    assert whole.data.license == "apache-2.0" and whole.data.library_name == "transformers"
    assert whole.data.pipeline_tag == "image-text-to-text"
    assert whole.data.base_model == named["base_model"] and named["base_model"] in whole.text
    assert "| mmsrarec | full | 9 | 0.2500 |" in whole.text
    assert 'mmsrec_jax.load("DIR")' in whole.text and str(tmp_path) not in whole.text
    assert adapters.data.library_name == "peft" and adapters.data.license is None
    assert adapters.data.base_model is None and "Base model: `qwen2_5_vl`." in adapters.text
    assert "license is not set" in adapters.text and str(tmp_path) not in adapters.text
    for name in ("whole", "adapters"):
        known = {"README.md", "config.json", "adapter_config.json", "generation_config.json"}
        found = {path.name for path in (tmp_path / name).iterdir()} - known
        assert found <= {
            "model.safetensors", "adapter_model.safetensors", "tokenizer.json",
            "tokenizer_config.json", "preprocessor_config.json", "chat_template.jinja",
        }  # fmt: skip
    for flag in ({"merge": True}, {"base_model": named["base_model"]}):
        with pytest.raises(UserError, match="sequential recommender: leave --merge"):
            export(workdir, tmp_path / "other", step="sasrec", **flag)
    for name in (str(GOLDEN), "Qwen2.5-VL", "a/b/c", "../b", 'a/b"'):
        with pytest.raises(UserError, match="--base_model=.*: write a name on the Hub"):
            export(workdir, tmp_path / "other", merge=True, base_model=name)


def test_the_folder_is_uploaded_as_it_is(adapted, tmp_path, monkeypatch):
    export(adapted[0], tmp_path / "out", adapter_only=True, base_model="shop/base")
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.uploaded(tmp_path / "out", monkeypatch) == files
    raw = json.loads(files["adapter_config.json"])
    assert raw["base_model_name_or_path"] == "shop/base"
    assert 'from_pretrained("shop/base")' in files["README.md"].decode()


def test_flags_that_do_not_fit_the_step(adapted, full, tmp_path):
    for flags in ({}, {"merge": True, "adapter_only": True}):
        with pytest.raises(UserError, match="trained adapters: say --merge .* or --adapter_only"):
            export(adapted[0], tmp_path / "out", **flags)
    workdir = tmp_path / "connector"
    export_runs.pretrained_run(workdir, GOLDEN, "connector")
    for flags in ({}, {"adapter_only": True}):
        with pytest.raises(UserError, match="the connector and no adapters, .*: say --merge"):
            export(workdir, tmp_path / "out", **flags)
    workdir = tmp_path / "warmed_up"
    export_runs.pretrained_run(workdir, GOLDEN, "lora", warmup="connector+lora")
    with pytest.raises(UserError, match="for the model that step warmup left, .*: say --merge"):
        export(workdir, tmp_path / "out", adapter_only=True)
    for flag in ("merge", "adapter_only"):
        with pytest.raises(UserError, match="there are no adapters; leave --merge and"):
            export(full[0], tmp_path / "out", **{flag: True})
    assert not (tmp_path / "out").exists()


def test_runs_that_have_no_such_model(adapted, tmp_path):
    with pytest.raises(UserError, match="step sft has not finished; run launch/train.py"):
        export(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match="step plain_sft has not finished"):
        export(adapted[0], tmp_path / "out", step="plain_sft")

    workdir = Path(shutil.copytree(adapted[0], tmp_path / "run"))
    step_records.change(workdir / "sft", model__path=str(tmp_path / "moved"))
    with pytest.raises(UserError, match="moved: the base model of .* is not there"):
        export(workdir, tmp_path / "out", merge=True)

    workdir = Path(shutil.copytree(adapted[0], tmp_path / "damaged"))
    for file in (workdir / "sft" / "weights").rglob("*manifest*"):
        file.unlink()
    with pytest.raises(UserError, match="weights: cannot be read .*; delete .*sft and run launch/"):
        export(workdir, tmp_path / "out", merge=True)
    shutil.rmtree(workdir / "sft" / "weights")
    with pytest.raises(UserError, match="no weights here"):
        export(workdir, tmp_path / "out", merge=True)


def launch(*arguments):
    return subprocess.run(
        [sys.executable, "launch/export.py", *arguments],
        cwd=ROOT, env=os.environ | {"XLA_FLAGS": xla_flags.of_devices(1)},
        capture_output=True, text=True,
    )  # fmt: skip


def test_the_command(adapted, tmp_path):
    workdir, model = adapted
    out = tmp_path / "out"
    named = ("--base_model=shop/base", "--license=mit")
    done = launch(f"--workdir={workdir}", f"--out={out}", "--merge", "--dtype=bfloat16", *named)
    assert done.returncode == 0, done.stderr
    about = ModelCard.load(out / "README.md").data
    assert (about.base_model, about.license) == ("shop/base", "mit")
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    mmsrec_jax.load(out, "bfloat16")
    again = launch(f"--workdir={workdir}", f"--out={out}", "--merge")
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1 and "not empty" in again.stderr
