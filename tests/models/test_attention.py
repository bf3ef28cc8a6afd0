"""Attention on every platform against a plain float64 softmax and its gradients.

Splash and flash run interpreted. Blocks are listed, some at a time, though few can be skipped.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import mllm_batches as mb
import numpy as np
import pytest
from flax import nnx

from mmsrec_jax.models import attention as lib
from mmsrec_jax.models import blocks
from mmsrec_jax.models.attention import Layout, attention, causal, within_segments
from mmsrec_jax.runtime import sharding

B, L, HEADS, KV_HEADS, DIM = 2, 150, 4, 2, 8  # L: more than one block, and no multiple of one
IMPLEMENTATIONS = ("xla", "blocks", "splash", "flash")


@pytest.fixture(autouse=True)
def listed(monkeypatch):
    monkeypatch.setattr(blocks, "_DENSE_ABOVE", np.inf)
    monkeypatch.setattr(blocks, "_AT_A_TIME", 2)


@functools.cache
def inputs():
    """q, k, v and a cotangent; rows of segments with padding, suffixes in order and mixed."""
    rng = np.random.default_rng(0)
    q, k, v, out = (
        rng.normal(size=(B, L, n, DIM)).astype(np.float32)
        for n in (HEADS, KV_HEADS, KV_HEADS, HEADS)
    )
    segments = np.array([[1] * 60 + [2] * 70 + [0] * 20, [0] * 3 + [3] * 140 + [1] * 7], np.int32)
    suffixes = rng.integers(0, 4, (B, L)).astype(np.int32)
    suffixes[0, :60] = np.repeat([0, 1, 2], 20)
    return q, k, v, out, segments, suffixes


def seen(kind, query=None):
    """bool[B, T, L], by the definition, token by token; `query`: slots of the queries."""
    *_, segments, suffixes = inputs()
    mask = np.zeros((B, L if query is None else len(query), L), bool)
    for b, i, s in np.ndindex(mask.shape):
        t = i if query is None else query[i]
        own = suffixes[b, s] in (0, suffixes[b, t])
        mask[b, i, s] = kind == "everything" or (
            segments[b, s] == segments[b, t] > 0
            and (kind == "sides" or s <= t)
            and (kind != "suffixes" or own)
        )
    return mask


def softmax_attention(q, k, v, mask, cotangent):
    """Outputs and gradients of sum(out * cotangent) of queries that see something."""
    q, k, v, cotangent = (x.astype(np.float64) for x in (q, k, v, cotangent))
    out, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
    for b, n in np.ndindex(B, HEADS):
        kv = n // (HEADS // KV_HEADS)
        scores = np.where(mask[b], q[b, :, n] @ k[b, :, kv].T / np.sqrt(DIM), -np.inf)
        live = mask[b].any(1)
        weights = np.exp(scores - np.where(live, scores.max(1), 0)[:, None])
        weights /= np.where(live, weights.sum(1), 1)[:, None]
        out[b, :, n] = weights @ v[b, :, kv]
        dv[b, :, kv] += weights.T @ cotangent[b, :, n]
        slope = cotangent[b, :, n] @ v[b, :, kv].T
        slope = weights * (slope - (weights * slope).sum(1, keepdims=True)) / np.sqrt(DIM)
        dq[b, :, n] = slope @ k[b, :, kv]
        dk[b, :, kv] += slope.T @ q[b, :, n]
    return out, dq, dk, dv


def visible(kind, segments, suffixes):
    slots = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    if kind == "everything":
        return lib.everything(*segments.shape, jnp.float32)
    if kind == "sides":
        return within_segments(segments, jnp.float32)
    suffixes = suffixes if kind == "suffixes" else None
    return causal(Layout(segments, suffixes, slots), None, jnp.float32)


def run(kind, name, axes=("heads", "kv_heads")):
    """Outputs, 0 where nothing is seen, and gradients."""
    q, k, v, cotangent, segments, suffixes = inputs()
    live = seen(kind).any(2)[..., None, None]

    @jax.jit
    def both(q, k, v, segments, suffixes):
        def total(q, k, v):
            out = attention(q, k, v, visible(kind, segments, suffixes), axes)
            out = jnp.where(live, out, 0)
            return jnp.sum(out * cotangent), out

        gradients, out = jax.grad(total, (0, 1, 2), has_aux=True)(q, k, v)
        return out, *gradients

    with lib.force(name):
        return both(q, k, v, segments, suffixes)


def assert_close(got, expected):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@functools.cache
def expected(kind):
    q, k, v, cotangent, *_ = inputs()
    return softmax_attention(q, k, v, seen(kind), cotangent)


@pytest.mark.parametrize(
    "kind, name",
    [
        *itertools.product(["packed", "suffixes", "sides"], IMPLEMENTATIONS),
        # in splash and flash: sides with one segment
        ("everything", "xla"),
    ],
)
def test_matches_a_plain_softmax(kind, name):
    assert_close(run(kind, name), expected(kind))


@pytest.mark.parametrize(
    "kind, name, axes",
    [
        ("packed", "splash", ("heads", "kv_heads")),
        ("suffixes", "splash", ("heads", "kv_heads")),
        ("suffixes", "flash", ("heads", "kv_heads")),
        ("suffixes", "blocks", ("heads", "kv_heads")),
        ("sides", "flash", ("vision_heads", "vision_heads")),
    ],
)
def test_eight_devices_equal_one(kind, name, axes):
    with jax.set_mesh(sharding.make_mesh(2, 1, 4)):  # two kv heads over four devices
        spread = run(kind, name, axes)
    assert_close(spread, expected(kind))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_queries_behind_their_keys(name):
    """A prefill into a cache: fewer queries than slots, empty slots, a query that sees nothing."""
    q, k, v, cotangent, segments, suffixes = inputs()
    slots = np.arange(10, 145)
    asked = segments[:, slots].copy()
    asked[:, 20] = 9
    mask = seen("suffixes", slots) & (asked == segments[:, slots])[..., None]
    q, cotangent = (np.where(mask.any(2)[..., None, None], x[:, slots], 0) for x in (q, cotangent))
    keys = Layout(segments, suffixes, np.broadcast_to(np.arange(L), segments.shape))
    queries = Layout(asked, suffixes[:, slots], np.broadcast_to(slots, asked.shape))

    @jax.jit
    def both(q, k, v, queries, keys):
        out, back = jax.vjp(
            lambda *qkv: attention(*qkv, causal(queries, keys, jnp.float32)), q, k, v
        )
        live = jnp.any(mask, 2)[..., None, None]
        return jnp.where(live, out, 0), *back(jnp.where(live, cotangent, 0))

    with lib.force(name):
        got = both(q, k, v, queries, keys)
    assert_close(got, softmax_attention(q, k, v, mask, cotangent))


def test_blocks_take_the_dense_product_where_little_can_be_skipped(monkeypatch):
    """What the lists give is made useless."""
    listed = blocks._listed
    monkeypatch.setattr(blocks, "_listed", lambda *args: jax.tree.map(jnp.negative, listed(*args)))
    monkeypatch.setattr(blocks, "_DENSE_ABOVE", 0.5)
    assert_close(run("suffixes", "blocks"), expected("suffixes"))


@pytest.mark.parametrize("name", ["blocks", "splash", "flash"])
def test_a_model_is_the_same_interpreted(name):
    """Windows and whole images alternate in the tower's scan; a batch has suffixes or has none."""
    rng = np.random.default_rng(0)
    rows = [mb.example(rng, [(16, 12)], 40, suffixes=(40, 30)), mb.example(rng, [(4, 8)], 20)]
    batch = mb.batch(rows, 180, 224)
    graphdef, state = nnx.split(mb.model())

    def hidden(batch):
        return nnx.merge(graphdef, state)(batch) * (batch.segment_ids > 0)[..., None]

    wanted = jax.jit(hidden)
    straight = wanted(dataclasses.replace(batch, suffix_ids=np.zeros_like(batch.suffix_ids)))
    batch_without = dataclasses.replace(batch, suffix_ids=None)
    with lib.force(name):
        got = jax.jit(lambda batches: [hidden(batch) for batch in batches])((batch, batch_without))
    np.testing.assert_allclose(got[0], wanted(batch), atol=1e-4)
    np.testing.assert_allclose(got[1], straight, atol=1e-4)
    assert np.abs(got[0] - got[1]).max() > 1e-2


def test_implementation_follows_from_platform_type_and_length(monkeypatch):
    bf16, f32 = jnp.bfloat16, jnp.float32
    assert lib.platform() == "cpu" and lib.implementation(f32, 4096) == "blocks"
    for platform, fused in {"cpu": "xla", "tpu": "splash", "gpu": "flash"}.items():
        monkeypatch.setattr(lib, "platform", lambda platform=platform: platform)
        assert lib.implementation(bf16, 128) == fused
        assert lib.implementation(f32, 128) == lib.implementation(bf16, 1) == "xla"
    with lib.force("splash"):
        assert lib.implementation(f32, 128) == "splash"
        assert lib.implementation(f32, 127) == "xla"


def test_platform_is_the_mesh_not_the_host():
    chip = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((1, 4, 2), sharding.MESH_AXES, abstract_device=chip)
    with jax.sharding.use_abstract_mesh(mesh):
        assert jax.default_backend() == "cpu" and lib.platform() == "tpu"


@pytest.mark.parametrize("name", ["xla", "blocks", "flash"])
def test_rows_that_see_nothing_pass_no_nan_to_gradients(name):
    q, k, v, *_ = inputs()
    segments = np.zeros((B, L), np.int32)
    segments[1, 20:] = 1

    def total(q, k, v):
        return jnp.sum(attention(q, k, v, within_segments(segments, jnp.float32)) ** 2)

    with lib.force(name):
        gradients = jax.jit(jax.grad(total, (0, 1, 2)))(q, k, v)
    for gradient in gradients:
        assert np.isfinite(gradient).all() and np.any(gradient)


def test_softmax_is_float32_for_bfloat16_inputs():
    """512 equal scores: weights summed in bf16 would lose most of them."""
    ones = jnp.ones((1, 512, 1, 4), jnp.bfloat16)
    visible = jnp.ones((1, 512, 512), bool)
    np.testing.assert_allclose(
        attention(ones, ones, ones, visible).astype(np.float32), 1, rtol=4e-3
    )
