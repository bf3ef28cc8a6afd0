"""What each kind of training selects of a model, by family, and in which type it is held."""

from pathlib import Path

import jax
import jax.numpy as jnp
import mllm_batches as mb
import pytest
from flax import nnx

import mmsrec_jax
from mmsrec_jax.models import lora, trainable
from mmsrec_jax.runtime.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
# Hugging Face's names of what maps the features of the tower to the decoder's width.
CONNECTORS = {
    "qwen2_vl": {"vision.merger"},
    "qwen2_5_vl": {"vision.merger"},
    "qwen3_vl": {"vision.merger", "vision.deepstack"},
    "llava_clip": {"vision.projector"},
    "llava_dinov2": {"vision.projector"},
    "internvl": {"vision.projector"},
}


def selected(model, kind):
    flat = nnx.to_flat_state(nnx.state(model, trainable.filter_of(kind)))
    return {".".join(map(str, path)): leaf for path, leaf in flat}


@pytest.mark.parametrize("name", CONNECTORS)
def test_the_connector_of_each_family(name):
    model = mmsrec_jax.load(GOLDEN / name)
    lora.add(model, 2, 2.0, ("q",), rngs=nnx.Rngs(0))
    connector = selected(model, "connector")
    assert {".".join(path.split(".")[:2]) for path in connector} == CONNECTORS[name]
    # All that has the decoder's width as its output is there.
    outputs = {p for p, leaf in selected(model, "full").items() if p.startswith("vision.")
               and leaf.shape[-1] == model.config.text.hidden != model.config.vision.hidden
               and p.endswith("kernel") and "layers" not in p}  # fmt: skip
    assert outputs <= set(connector)
    adapters = {"text.layers.q.lora_a", "text.layers.q.lora_b"}
    assert set(selected(model, "lora")) == adapters
    assert set(selected(model, "connector+lora")) == adapters | set(connector)


@pytest.mark.parametrize("kind", trainable.KINDS)
def test_what_is_trained_is_held_in_float32_and_the_rest_as_it_computes(kind):
    model = mmsrec_jax.load(GOLDEN / "qwen3_vl", "bfloat16", trainable=kind)
    if "lora" in trainable.parts(kind):
        lora.add(model, 2, 2.0, ("q",), rngs=nnx.Rngs(0))
    trained = selected(model, kind)
    for path, leaf in selected(model, "full").items():
        assert leaf.dtype == (jnp.float32 if path in trained else jnp.bfloat16), path
    exact = selected(mmsrec_jax.load(GOLDEN / "qwen3_vl"), "full")
    for path, leaf in trained.items():
        assert path not in exact or (leaf[...] == exact[path][...]).all()  # never rounded


def test_what_is_not_there_is_named():
    text = mb.model(vision=False)
    lora.add(text, 2, 2.0, ("q",), rngs=nnx.Rngs(0))
    for kind in ("connector", "connector+lora"):
        with pytest.raises(UserError, match="no vision tower, so no connector"):
            trainable.check(text, kind)
    with pytest.raises(UserError, match="no such weights; add them"):
        trainable.check(mb.model(), "connector+lora")
    trainable.check(text, "lora")
    with pytest.raises(UserError, match="trainable='head' is none of"):
        trainable.filter_of("head")
    assert jax.tree.leaves(nnx.state(text, trainable.filter_of("connector"))) == []
