"""Live: transformers loads what is exported, peft the adapters, and both give our logits."""

import json

import export_runs
import numpy as np
import pytest
from pairs import (
    NO_IMAGE,
    ONE_IMAGE,
    TOLERANCE,
    TWO_IMAGES,
    distance,
    hf,
    make_rows,
    save,
    torch,
    transformers,
)

import mmsrec_jax
from mmsrec_jax.hf import tokenizer
from mmsrec_jax.hf.mapping import processor_of
from mmsrec_jax.methods.export import export

pytestmark = pytest.mark.parity
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
WITH_TOWER = (*QWEN, "llava_clip", "llava_siglip", "llava_dinov2", "internvl")


@pytest.fixture(
    scope="module",
    params=[*WITH_TOWER, *hf.TEXT_ONLY],
)
def base(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    save(hf.tiny_model(hf.tiny_config(request.param), seed=11), directory)
    tokenizer.train(["a mug, a lamp", "a red mug"] * 9, 300, directory)
    return directory


@pytest.fixture(scope="module")
def batch(base):
    """Two images of different grids in one row, one in the next, text alone in the last; text alone
    in all of them for a text-only model."""
    config = transformers.AutoConfig.from_pretrained(base)
    layouts = [TWO_IMAGES, ONE_IMAGE, NO_IMAGE] if hf.has_tower(config) else [NO_IMAGE] * 3
    rows, images = make_rows(config, 1, layouts)
    return *hf.pad(rows), images


def difference(theirs, ours, batch):
    return distance(ours, theirs, *batch)


def from_pretrained(directory, **options):
    auto_class = hf.auto_class(transformers.AutoConfig.from_pretrained(directory))
    model, info = auto_class.from_pretrained(directory, output_loading_info=True, **options)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize(
    "base, trainable",
    [(name, kind) for name in (*WITH_TOWER, *hf.TEXT_ONLY) for kind in ("full", "lora")]
    + [(name, kind) for name in WITH_TOWER for kind in ("connector", "connector+lora")],
    indirect=["base"],
)
def test_a_whole_model(base, batch, trainable, tmp_path):
    ours = export_runs.pretrained_run(tmp_path / "run", base, trainable)
    export(
        tmp_path / "run",
        tmp_path / "out",
        merge=trainable != "full",
        max_shard_bytes=20_000,
    )
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    theirs = from_pretrained(tmp_path / "out")
    assert difference(from_pretrained(base), ours, batch) > 100 * TOLERANCE
    error = difference(theirs, ours, batch)
    print(f"{base.name}, {trainable}: max abs difference {error:.2e}")
    assert error <= TOLERANCE

    text = "a red mug<|image_pad|>"
    ids = [transformers.AutoTokenizer.from_pretrained(d)(text) for d in (base, tmp_path / "out")]
    assert ids[0] == ids[1]
    assert processor_of(tmp_path / "out") == ours.processor


@pytest.mark.parametrize("base", QWEN, indirect=True)
def test_a_model_from_scratch(base, batch, tmp_path):
    """There are no files whose tensor names could be followed."""
    ours = export_runs.scratch_run(tmp_path / "run", base)
    export(tmp_path / "run", tmp_path / "out", step="summarizer", merge=True)
    assert difference(from_pretrained(tmp_path / "out"), ours, batch) <= TOLERANCE


@pytest.mark.parametrize("base", ["qwen3_vl", "llava_clip", "llama"], indirect=True)
def test_a_bfloat16_model_holds_the_rounded_weights(base, tmp_path):
    ours = export_runs.pretrained_run(tmp_path / "run", base, "full")
    export(tmp_path / "run", tmp_path / "out", dtype="bfloat16")
    theirs = from_pretrained(tmp_path / "out")
    assert theirs.dtype == torch.bfloat16
    head = theirs.get_output_embeddings().weight.detach().float().numpy()
    expected = torch.tensor(np.asarray(ours.text.head.kernel[...])).bfloat16().float().numpy()
    np.testing.assert_array_equal(head, expected.T)


@pytest.mark.parametrize("base", ["qwen3_vl", "llava_clip"], indirect=True)
@pytest.mark.parametrize("warmup", ["connector", "connector+lora", "full"])
def test_a_whole_model_after_a_warm_up(base, batch, warmup, tmp_path):
    ours = export_runs.pretrained_run(tmp_path / "run", base, "lora", warmup=warmup)
    export(tmp_path / "run", tmp_path / "out", merge=True)
    assert difference(from_pretrained(tmp_path / "out"), ours, batch) <= TOLERANCE
    export(tmp_path / "run", tmp_path / "base", step="warmup", merge=warmup != "full")
    start = from_pretrained(tmp_path / "base")
    warmed_up = export_runs.change(mmsrec_jax.load(base), warmup, seed=1)
    assert difference(start, warmed_up, batch) <= TOLERANCE
    assert difference(start, ours, batch) > 100 * TOLERANCE


@pytest.mark.parametrize("base", WITH_TOWER, indirect=True)
@pytest.mark.parametrize("trainable, warmup", [("connector+lora", ""), ("lora", "connector")])
def test_adapters_and_the_connector_on_the_base_model(base, batch, trainable, warmup, tmp_path):
    """Peft loads the connector in place of the base model's, from the step or from its warm-up."""
    peft = pytest.importorskip("peft", reason="make parity installs it")
    ours = export_runs.pretrained_run(tmp_path / "run", base, trainable, warmup=warmup)
    export(tmp_path / "run", tmp_path / "out", adapter_only=True)
    theirs = peft.PeftModel.from_pretrained(from_pretrained(base), tmp_path / "out").eval()
    error = difference(theirs, ours, batch)
    print(f"{base.name}, {trainable} after {warmup or 'no'} warm-up: {error:.2e}")
    assert error <= TOLERANCE
    with theirs.disable_adapter():  # which takes the connector away too
        assert difference(theirs, mmsrec_jax.load(base), batch) <= TOLERANCE
        assert difference(theirs, ours, batch) > 100 * TOLERANCE


def test_adapters_on_the_base_model(base, batch, tmp_path):
    peft = pytest.importorskip("peft", reason="make parity installs it")
    ours = export_runs.pretrained_run(tmp_path / "run", base, "lora")
    export(tmp_path / "run", tmp_path / "out", adapter_only=True)
    theirs = peft.PeftModel.from_pretrained(from_pretrained(base), tmp_path / "out").eval()
    adapted = {name.rsplit(".lora_A", 1)[0] for name, _ in theirs.named_parameters()
               if ".lora_A." in name}  # fmt: skip
    assert len(adapted) == 7 * ours.config.text.layers
    decoder = "model.layers." if ours.config.vision is None else "model.language_model.layers."
    assert all(f".{decoder}" in name for name in adapted)
    error = difference(theirs, ours, batch)
    print(f"{base.name}, adapters: max abs difference {error:.2e}")
    assert error <= TOLERANCE
    with theirs.disable_adapter():
        assert difference(theirs, ours, batch) > 100 * TOLERANCE
    raw = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert raw["base_model_name_or_path"] == str(base)
