"""Compiled steps on eight devices: weights are gathered layer by layer, never a whole stack."""

import jax
import pytest

from configs import quickstart
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.planning import hlo, planned, report, roofline, steps
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.settings import from_config

LAYERS, VISION_LAYERS, TOKENS = 5, 7, 11


def make(sizes, trainable, *, gather_weights=True):
    """A model whose stacked kernels are a few MiB each, in rows that are short."""
    config = quickstart.get_config()
    config.model.tiny.update(
        vocab_size=2048, hidden=256, layers=LAYERS, heads=8, kv_heads=4, intermediate=1024,
        vision_hidden=128, vision_layers=VISION_LAYERS, vision_heads=4, vision_intermediate=512,
    )  # fmt: skip
    config.sft.update(
        trainable=trainable, lora_rank=8, batch_size=8, length=64, patches=16, answers=8, targets=16
    )
    config.summarizer.update(
        lora_rank=8,
        batch_size=8,
        num_generations=2,
        micro_batch=16,
        prompt_length=64,
        patches=16,
        max_new_tokens=TOKENS,
        gather_weights=gather_weights,
    )
    config.model.remat = "full"
    settings = from_config(Settings, config)
    return steps.Steps(settings, planned.model_config(settings), sharding.make_mesh(*sizes))


@pytest.mark.parametrize(
    "sizes, trainable", [((2, 2, 2), "lora"), ((1, 4, 2), "full")], ids=["lora", "full"]
)
def test_weights_are_gathered_layer_by_layer_and_the_embedding_never(sizes, trainable, capfd):
    made = make(sizes, trainable)
    step = made.sft()
    stacks = [x for x in jax.tree.leaves(step.kinds["parameters"]) if x.size * 4 > 2**20]
    assert len(stacks) > 5 and report.replicated(step.arguments, made.mesh) == []
    with jax.set_mesh(made.mesh):
        program = hlo.Program(step.function.lower(*step.arguments).compile().as_text())
    assert "full rematerialization" not in capfd.readouterr().err  # the partitioner's warning
    found = program.collectives(made.mesh.size)
    inside = {c.times for c in found if c.kind == "all-gather"}
    assert LAYERS in inside and VISION_LAYERS in inside
    outside = [c for c in found if c.times == 1 and c.bytes >= 2**18 and len(c.dims) > 2]
    assert [c for c in outside if c.dims[0] in (LAYERS, VISION_LAYERS)] == []
    # Tokens are looked up where the columns of the table are; layers are gathered over FSDP alone.
    gathered = [c for c in found if c.kind == "all-gather" and c.bytes >= 2**16]
    table = (made.shape.text.vocab_size // sizes[2], made.shape.text.hidden)
    assert table[::-1] in [c.dims for c in gathered] and table not in [c.dims for c in gathered]
    in_layers = [c for c in gathered if c.times == LAYERS]
    assert {roofline.axes_of(c, made.mesh) for c in in_layers} == {"fsdp"}


@pytest.mark.parametrize("once", [True, False])
def test_weights_are_gathered_once_for_all_tokens(once):
    made = make((1, 4, 2), "lora", gather_weights=once)
    step = made.rollout()
    with jax.set_mesh(made.mesh):
        program = hlo.Program(step.function.lower(*step.arguments).compile().as_text())
    found = program.collectives(made.mesh.size)
    # Large ones: that all rows have ended is one bit along the axes of the batch.
    for_tokens = [c for c in found if c.times >= TOKENS and c.bytes >= 2**15]
    axes = {roofline.axes_of(c, made.mesh) for c in for_tokens}
    assert any("fsdp" in each for each in axes) == (not once)
