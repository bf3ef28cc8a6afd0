"""Counted FLOPs against the products of the traced program, XLA's own count and closed forms."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmsrec_jax.hf import mapping
from mmsrec_jax.hf.processor import read_json
from mmsrec_jax.models import flops, lora, trainable
from mmsrec_jax.models.batch import Batch, Patches
from mmsrec_jax.models.config import DecoderConfig, MLLMConfig, VisionConfig
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.models.patches import patch_hw
from mmsrec_jax.models.token_logprobs import token_logprobs

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_clip", "llava_dinov2", "internvl")
GRID = (4, 4)
ROW = flops.Row(length=40, targets=8, grids=(GRID,))


def family_config(name: str, remat: str = "none") -> MLLMConfig:
    """The golden model without what the program does beyond the count: windows, which it masks but
    computes, and positions resampled."""
    directory = GOLDEN / name
    raw = read_json(directory / "config.json")
    config = mapping.config_from_hf(raw, mapping.processor_of(directory))
    if isinstance(config.vision, VisionConfig):
        vision = dataclasses.replace(config.vision, window_size=None)
    else:
        vision = dataclasses.replace(config.vision, position_grid=GRID[0])
    return dataclasses.replace(config, vision=vision, remat=remat)


def products(jaxpr) -> int:
    """2mnk of every dot_general of a program, the body of a scan as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                total += repeats * products(inner)
    return total


def program(config: MLLMConfig, adapters: flops.Adapters | None = None, *, connector=False):
    """(function of trained and frozen weights that gives the loss of ROW, these weights)."""

    def make():
        model = MLLM(config, rngs=nnx.Rngs(0))
        if adapters is not None:
            lora.add(model, adapters.rank, 1.0, adapters.targets, rngs=nnx.Rngs(0))
        return model

    kind = "+".join(["connector"] * connector + ["lora"] * (adapters is not None)) or "full"
    kind = trainable.filter_of(kind)
    graphdef, trained, frozen = nnx.split(nnx.eval_shape(make), kind, ...)
    nothing, images = jnp.zeros((1, ROW.length), jnp.int32), None
    if ROW.grids and config.vision is not None:
        count = math.prod(GRID)
        pixels = config.vision.channels * config.vision.patch_size**2
        one = jnp.ones((1, count), jnp.int32)
        hw = jnp.asarray(patch_hw(GRID, 2))[None]
        images = Patches(jnp.zeros((1, count, pixels), jnp.uint8), hw, one, one)
    batch = Batch(
        tokens=nothing,
        positions=jnp.zeros((1, 3, ROW.length), jnp.int32),
        segment_ids=nothing + 1,
        suffix_ids=nothing,
        images=images,
    )

    def loss(trained, frozen):
        model = nnx.merge(graphdef, trained, frozen)
        hidden = model(batch)[:, -ROW.targets - 1 :]
        return -jnp.sum(token_logprobs(model, hidden, jnp.zeros((1, ROW.targets + 1), jnp.int32)))

    return loss, (trained, frozen)


@pytest.mark.parametrize("name", FAMILIES)
def test_forward_counts_every_product_of_the_program(name):
    loss, weights = program(family_config(name))
    counted = flops.forward(family_config(name), ROW)
    assert sum(counted.values()) == products(jax.make_jaxpr(loss)(*weights).jaxpr)


SOME, ALL = flops.Adapters(3, ("q", "down")), flops.Adapters(2)


@pytest.mark.parametrize(
    "name,remat,adapters",
    [
        ("qwen2_5_vl", "none", None),
        ("qwen2_5_vl", "full", ALL),
        ("qwen2_5_vl", "dots", SOME),
        ("qwen3_vl", "full", None),
        ("qwen3_vl", "none", SOME),
        ("llava_clip", "dots", None),
        ("llava_clip", "full", ALL),
    ],
)
def test_train_step_and_recomputation_count_every_product(name, remat, adapters):
    config = family_config(name, remat)
    loss, weights = program(config, adapters)
    done = products(jax.make_jaxpr(jax.grad(loss))(*weights).jaxpr)
    counted = flops.train_step(config, ROW, adapters), flops.recomputed(config, ROW, adapters)
    assert sum(sum(parts.values()) for parts in counted) == done


@pytest.mark.parametrize("adapters", [None, SOME], ids=["connector", "connector+lora"])
@pytest.mark.parametrize(
    "name,remat",
    [
        ("qwen2_vl", "none"),
        ("qwen2_5_vl", "full"),
        ("qwen3_vl", "full"),
        ("llava_clip", "dots"),
        ("llava_dinov2", "full"),
        ("internvl", "none"),
    ],
)
def test_a_connector_is_passed_back_to_through_the_decoder_and_not_through_the_tower(
    name, remat, adapters
):
    config = family_config(name, remat)
    loss, weights = program(config, adapters, connector=True)
    done = products(jax.make_jaxpr(jax.grad(loss))(*weights).jaxpr)
    step = flops.train_step(config, ROW, adapters, connector=True)
    again = flops.recomputed(config, ROW, adapters, connector=True)
    assert sum(step.values()) + sum(again.values()) == done
    once = flops.forward(config, ROW, adapters)
    assert all(step[part] == once[part] for part in ("tower", "tower_attention"))


def test_windows_count_the_pairs_inside_them():
    tower = VisionConfig(depth=3, hidden=16, heads=2, intermediate=8, fullatt_block_indexes=(1,))
    config = dataclasses.replace(family_config("qwen2_5_vl"), vision=tower)
    grid = (20, 10)
    row, column = np.indices(grid).reshape(2, -1) // 8  # windows of 112 pixels, patches of 14
    windowed = (row[:, None] == row) & (column[:, None] == column)
    pairs = 2 * np.sum(windowed) + windowed.size
    two = flops.forward(config, flops.Row(length=8, targets=1, grids=[grid, grid]))
    assert two["tower_attention"] == 2 * pairs * 4 * tower.hidden


def test_a_large_decoder_costs_six_flops_per_parameter_and_token():
    text = DecoderConfig(
        vocab_size=151936, hidden=5120, layers=40, heads=40, kv_heads=8, head_dim=128,
        intermediate=25600, rope_kind="1d", qkv_bias=False,
    )  # fmt: skip
    config = MLLMConfig(text, None, 0, None, None)
    model = nnx.eval_shape(lambda: MLLM(config, rngs=nnx.Rngs(0)))
    lookups = text.vocab_size * text.hidden
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model))) - lookups
    length = 512
    counted = sum(flops.train_step(config, flops.Row(length, targets=length)).values())
    assert counted == pytest.approx(6 * count * length, rel=0.03)  # attention is what is left


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_clip"])
def test_xla_counts_a_forward_of_wide_layers_likewise(name):
    """XLA counts the body of a scan once: one layer. It also counts element-wise work: wide."""
    config = family_config(name)
    text = dataclasses.replace(
        config.text, layers=1, hidden=256, heads=4, kv_heads=2, head_dim=64, intermediate=512,
        mrope_section=(8, 12, 12),
    )  # fmt: skip
    vision = dataclasses.replace(config.vision, hidden=256, heads=4, intermediate=512)
    if isinstance(vision, VisionConfig):
        vision = dataclasses.replace(vision, depth=1, fullatt_block_indexes=())
    else:
        vision = dataclasses.replace(vision, feature_layers=(1,))
    config = dataclasses.replace(config, text=text, vision=vision)
    loss, weights = program(config)
    analysis = jax.jit(loss).lower(*weights).cost_analysis()
    assert sum(flops.forward(config, ROW).values()) == pytest.approx(analysis["flops"], rel=0.05)
