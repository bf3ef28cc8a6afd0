"""Live: transformers loads what is exported, peft the adapters, and both give our logits."""

import importlib
import json

import export_runs
import numpy as np
import pytest

from mmsrec_jax import models
from mmsrec_jax.methods.export import export
from mmsrec_jax.models import tokenizer
from mmsrec_jax.models.processor import ImageProcessor

torch = pytest.importorskip(
    "torch", reason="live parity needs torch and transformers (make parity)"
)
transformers = importlib.import_module("transformers")
hf = importlib.import_module("golden.make_golden")

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4


FAMILIES = "qwen2_vl", "qwen2_5_vl", "qwen3_vl"


@pytest.fixture(scope="module", params=FAMILIES)
def base(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    model = hf.tiny_model(hf.tiny_config(family=request.param), seed=11)
    model.save_pretrained(directory)
    processor = transformers.Qwen2VLImageProcessorPil(**hf.preprocessor(model.config))
    processor.save_pretrained(directory)
    tokenizer.train(["a mug, a lamp", "a red mug"] * 9, 300, directory)
    return directory


@pytest.fixture(scope="module")
def batch(base):
    """Two images of different grids in one row, one in the next, text alone in the last."""
    rng, ours = np.random.default_rng(0), ImageProcessor.from_pretrained(base)
    images = [hf.random_images(1, [(24, 40), (37, 16)]), hf.random_images(2, [(9, 60)]), []]
    slots = [[ours.num_slots(ours.grid(*image.shape[:2])) for image in row] for row in images]
    rows = [hf.row(rng, row) for row in slots]
    ids = np.zeros((3, max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for b, row in enumerate(rows):
        ids[b, : len(row)], mask[b, : len(row)] = row, 1
    return ids, mask, images


def difference(theirs, ours, batch):
    ids, mask, images = batch
    with torch.no_grad():
        expected = hf.hf_logits(theirs, ids, mask, images).numpy()
    return np.abs(models.logits(ours, ids, mask, images) - expected)[mask.astype(bool)].max()


def from_pretrained(directory, **options):
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        directory, output_loading_info=True, **options
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_a_whole_model(base, batch, trainable, tmp_path):
    ours = export_runs.pretrained_run(tmp_path / "run", base, trainable)
    export(
        tmp_path / "run",
        tmp_path / "out",
        merge=trainable == "lora",
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
    assert ImageProcessor.from_pretrained(tmp_path / "out") == ours.processor


def test_a_model_from_scratch(base, batch, tmp_path):
    """There are no files whose tensor names could be followed."""
    ours = export_runs.scratch_run(tmp_path / "run", base)
    export(tmp_path / "run", tmp_path / "out", stage="summariser", merge=True)
    assert difference(from_pretrained(tmp_path / "out"), ours, batch) <= TOLERANCE


def test_a_bfloat16_model_holds_the_rounded_weights(base, tmp_path):
    ours = export_runs.pretrained_run(tmp_path / "run", base, "full")
    export(tmp_path / "run", tmp_path / "out", dtype="bfloat16")
    theirs = from_pretrained(tmp_path / "out")
    assert theirs.dtype == torch.bfloat16
    head = theirs.get_output_embeddings().weight.detach().float().numpy()
    expected = torch.tensor(np.asarray(ours.text.head.kernel[...])).bfloat16().float().numpy()
    np.testing.assert_array_equal(head, expected.T)


def test_adapters_on_the_base_model(base, batch, tmp_path):
    peft = pytest.importorskip("peft", reason="make parity installs it")
    ours = export_runs.pretrained_run(tmp_path / "run", base, "lora")
    export(tmp_path / "run", tmp_path / "out", adapter_only=True)
    theirs = peft.PeftModel.from_pretrained(from_pretrained(base), tmp_path / "out").eval()
    adapted = {name.rsplit(".lora_A", 1)[0] for name, _ in theirs.named_parameters()
               if ".lora_A." in name}  # fmt: skip
    assert len(adapted) == 7 * ours.config.text.layers
    assert all("language_model" in name for name in adapted)
    error = difference(theirs, ours, batch)
    print(f"{base.name}, adapters: max abs difference {error:.2e}")
    assert error <= TOLERANCE
    with theirs.disable_adapter():
        assert difference(theirs, ours, batch) > 100 * TOLERANCE
    raw = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert raw["base_model_name_or_path"] == str(base)
