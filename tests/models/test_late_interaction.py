"""Pairs of users and items against one forward pass a pair under the same mask, and what it costs.

The forward pass has an explicit mask: a prompt and an item see themselves, the tail sees both.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mmsrec_jax
from mmsrec_jax.models import kv_cache, rope
from mmsrec_jax.models.attention import attention
from mmsrec_jax.models.batch import Batch, pack_images
from mmsrec_jax.models.late_interaction import (
    Tail,
    continue_prompts,
    encode,
    encode_with_states,
    read_pairs,
)
from mmsrec_jax.models.layers import scan_layers
from mmsrec_jax.runtime.sharding import make_mesh, shardings

GOLDEN = Path(__file__).parents[1] / "golden"
WITH_IMAGES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_clip", "llava_dinov2", "internvl")
START = 12  # positions of prompts end and those of items begin here
TAIL = np.array([7, 9], np.int32)


def text_rows(rng, lengths, width, vocabulary):
    """Prompts of these lengths; their positions end at START."""
    tokens, ids = np.zeros((2, len(lengths), width), np.int32)
    positions = np.zeros((len(lengths), 3, width), np.int32)
    for row, n in enumerate(lengths):
        tokens[row, :n] = rng.integers(0, vocabulary, n)
        ids[row, :n] = 1
        positions[row, :, :n] = np.arange(START - n, START)
    return Batch(tokens, positions, ids)


def item_rows(rng, model, texts, vocabulary):
    """An image (if the model sees any) and `texts` words each -> rows, where their tails begin."""
    config, processor = model.config, model.processor
    rows, images = [], []
    for number, words in enumerate(texts):
        tokens, shown = rng.integers(0, vocabulary, words), ()
        if processor is not None:
            size = [(56, 56), (84, 56)][number % 2]
            image = processor.patchify(rng.integers(0, 256, (*size, 3), np.uint8))
            slots = [config.image_token_id] * processor.num_slots(image["grid"])
            tokens, shown = np.concatenate([slots, tokens]), (image,)
        grids = [image["grid"] for image in shown]
        positions = np.broadcast_to(np.arange(len(tokens)), (3, len(tokens)))
        if processor is not None:
            positions = processor.positions(tokens, grids, config.image_token_id)
        rows.append((tokens, positions))
        images.append(shown)
    width = max(len(tokens) for tokens, _ in rows) + 2
    tokens, ids = np.zeros((2, len(rows), width), np.int32)
    positions = np.zeros((len(rows), 3, width), np.int32)
    for row, (own, at) in enumerate(rows):
        tokens[row, : len(own)], ids[row, : len(own)] = own, 1
        positions[row, :, : len(own)] = at + START
    found = Batch(tokens, positions, ids)
    if processor is not None:
        patches = max(sum(len(image["patches"]) for image in shown) for shown in images)
        width = images[0][0]["patches"].shape[1]
        found = dataclasses.replace(found, images=pack_images(images, patches, width))
    return found, np.array([at.max() + 1 + START for _, at in rows], np.int32)


def one_forward(model, user: Batch, item: Batch, tail_at: int) -> jax.Array:
    """Hidden state [hidden] of the last token, of a user's and an item's row together."""
    x, deepstack = model._embed(item)
    words = jnp.concatenate([user.tokens, jnp.asarray(TAIL)[None]], axis=1)
    said = model.text.embed(words)
    u, n, r = user.tokens.shape[1], item.tokens.shape[1], len(TAIL)
    x = jnp.concatenate([said[:, :u], x, said[:, u:]], axis=1)
    after = jnp.broadcast_to(tail_at + jnp.arange(r), (1, 3, r))
    positions = jnp.concatenate([user.positions, item.positions, after], axis=2)
    there = jnp.concatenate([user.segment_ids, item.segment_ids, jnp.ones((1, r))], axis=1)[0] > 0
    part = np.repeat([0, 1, 2], [u, n, r])
    sees = (part[:, None] == part[None]) | (part[:, None] == 2)
    visible = jnp.asarray(np.tril(sees) & there[None])[None]
    if deepstack is not None:
        deepstack = jnp.pad(deepstack, ((0, 0), (0, 0), (u, r), (0, 0)))
    table = rope.text(positions, model.config.text)

    def layer(block, x, index):
        q, k, v = block.project(x, table, True)
        x = block.finish(x, attention(q, k, v, visible), True)
        if deepstack is not None:
            added = jnp.where(
                index < len(deepstack), deepstack[jnp.minimum(index, len(deepstack) - 1)], 0
            )
            x = x + added
        return x

    x = scan_layers(model.text.layers, layer, x, jnp.arange(model.config.text.layers), remat="none")
    return model.text.norm(x)[0, -1]


def row(batch: Batch, at: int) -> Batch:
    return jax.tree.map(lambda x: x[at : at + 1], batch)


def prepared(name):
    model = mmsrec_jax.load(GOLDEN / name)
    rng = np.random.default_rng(0)
    vocabulary = min(i for i in (model.config.image_token_id, 40) if i is not None)
    users = text_rows(rng, (5, 12, 3), START, vocabulary)
    items, tails = item_rows(rng, model, (4, 2, 6, 3), vocabulary)
    return model, users, items, tails


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def case(request):
    return prepared(request.param)


@pytest.mark.parametrize("name", [*WITH_IMAGES, "llama", "qwen3"])
def test_pairs_are_one_forward_under_the_same_mask(name):
    model, users, items, tails = prepared(name)
    graphdef, state = nnx.split(model)

    @jax.jit
    def pairs(state):
        model = nnx.merge(graphdef, state)
        return read_pairs(model, encode(model, users), encode(model, items), Tail(TAIL, tails))

    @jax.jit
    def pair(state, user, item, tail_at):
        return one_forward(nnx.merge(graphdef, state), user, item, tail_at)

    found = pairs(state)
    assert found.shape == (3, 4, model.config.text.hidden)
    expected = [
        [pair(state, row(users, b), row(items, m), tails[m]) for m in range(4)] for b in range(3)
    ]
    np.testing.assert_allclose(found, np.array(expected), atol=2e-5, rtol=2e-5)
    assert np.std(found) > 0.1


def test_a_row_ends_where_it_says_or_at_its_last_token(case):
    model, users, _, _ = case
    ends = np.array([[1, 4], [11, 11], [0, 2]], np.int32)
    states = np.asarray(model(users))
    found = encode(model, dataclasses.replace(users, ends=ends)).end
    expected = [(states[at, first] + states[at, last]) / 2 for at, (first, last) in enumerate(ends)]
    np.testing.assert_allclose(found, np.array(expected), atol=2e-5)
    plain = encode(model, users).end
    np.testing.assert_allclose(plain, states[np.arange(3), [4, 11, 2]], atol=2e-5)


def test_keys_are_those_of_a_plain_forward(case):
    """Of the items, by the cache that decoding fills."""
    model, _, items, _ = case
    rows, length = items.tokens.shape
    cache = kv_cache.init(model.config, rows, length, jnp.float32)
    _, filled = model(items, cache=cache)
    kept = encode(model, items)
    there = np.asarray(kept.there)
    for stored, found in ((filled.k, kept.k), (filled.v, kept.v)):
        stored = np.asarray(stored)
        assert stored.shape == found.shape
        np.testing.assert_allclose(found[:, there], stored[:, there], atol=1e-5)


def test_text_after_a_prompt_is_that_of_a_plain_forward():
    """And hidden states of the prompts themselves."""
    model, users, _, _ = prepared("qwen2_5_vl")
    words = np.random.default_rng(5).integers(0, 30, (3, 4)).astype(np.int32)
    found = continue_prompts(model, encode(model, users), words, START)
    _, states = encode_with_states(model, users)
    for at, n in enumerate(np.asarray(users.segment_ids).sum(axis=1)):
        tokens = np.concatenate([users.tokens[at, :n], words[at]])[None]
        positions = np.broadcast_to(np.arange(START - n, START + 4), (1, 3, n + 4))
        hidden = model(Batch(tokens, positions.astype(np.int32), np.ones_like(tokens)))[0]
        np.testing.assert_allclose(found[at], hidden[n:], atol=1e-5)
        np.testing.assert_allclose(states[at, :n], hidden[:n], atol=1e-5)


def test_gradients_reach_both_sides():
    """By finite differences of the loss along a random direction of every weight."""
    model, users, items, tails = prepared("qwen2_5_vl")
    graphdef, state = nnx.split(model)

    @jax.jit
    def loss(state):
        model = nnx.merge(graphdef, state)
        found = read_pairs(model, encode(model, users), encode(model, items), Tail(TAIL, tails))
        return jnp.sum(jnp.sin(found))

    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), state)
    gradient = jax.grad(loss)(state)
    along = sum(
        float(jnp.vdot(a, b))
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    step = 1e-4
    ahead, behind = (
        loss(jax.tree.map(lambda x, d: x + sign * step * d, state, direction))  # noqa: B023
        for sign in (1, -1)
    )
    assert along == pytest.approx(float(ahead - behind) / (2 * step), rel=2e-2)


def test_eight_devices_give_the_same(case):
    model, users, items, tails = case
    graphdef, state = nnx.split(model)

    def run(state, users, items, tails):
        model = nnx.merge(graphdef, state)
        return read_pairs(model, encode(model, users), encode(model, items), Tail(TAIL, tails))

    users, items = (
        jax.tree.map(lambda x: np.concatenate([x] * 8)[: 8 * (8 // len(x) or 1)][:8], part)
        for part in (users, items)
    )
    tails = np.resize(tails, 8)
    alone = jax.jit(run)(state, users, items, tails)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(state, shardings(state, mesh))
        found = jax.jit(run)(placed, users, items, tails)
    np.testing.assert_allclose(found, alone, atol=2e-5)
