"""Losses against dense optax and brute force; the largest arrays."""

import re
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmsrec_jax.planning import hlo
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.sharding import batch_sharding, make_mesh, replicated
from mmsrec_jax.sequential.losses import (
    ItemLoss,
    binary_nll,
    logits_bytes,
    sampled_nll,
    token_nll,
)


def drawn(tokens=37, items=50):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(tokens, 8)).astype(np.float32)
    table = rng.normal(size=(items, 8)).astype(np.float32)
    targets = rng.integers(0, items, tokens).astype(np.int32)
    targets[[3, 20]], targets[5] = -1, 0
    return hidden, table, targets


def dense(hidden, table, targets):
    nll = optax.softmax_cross_entropy_with_integer_labels(hidden @ table.T, jnp.maximum(targets, 0))
    return jnp.where(targets >= 0, nll, 0)


def compiled_gradient(mesh, *, tokens, items, chunk):
    """Of states, divided over the mesh, and of the table, which every device has; of width 2."""

    def loss(hidden, table, targets):
        return token_nll(hidden, table, targets, chunk=chunk).sum()

    rows, everywhere = batch_sharding(mesh), replicated(mesh)
    shapes = (
        jax.ShapeDtypeStruct((tokens, 2), jnp.float32, sharding=rows),
        jax.ShapeDtypeStruct((items, 2), jnp.float32, sharding=everywhere),
        jax.ShapeDtypeStruct((tokens,), jnp.int32, sharding=rows),
    )
    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()


def test_chunked_loss_and_gradients_equal_dense_optax():
    hidden, table, targets = drawn()
    weights = np.random.default_rng(1).normal(size=37).astype(np.float32)

    def chunked(hidden, table):
        nll = token_nll(hidden, table, targets, chunk=10)
        return (nll * weights).sum(), nll

    def whole(hidden, table):
        nll = dense(hidden, table, targets)
        return (nll * weights).sum(), nll

    got, wanted = (
        jax.value_and_grad(f, argnums=(0, 1), has_aux=True)(hidden, table) for f in (chunked, whole)
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_logits_of_all_tokens_never_exist_at_once():
    def loss(hidden, table):
        return token_nll(hidden, table, jnp.zeros(4096, jnp.int32), chunk=64).sum()

    shapes = (
        jax.ShapeDtypeStruct((4096, 8), jnp.float32),
        jax.ShapeDtypeStruct((5000, 8), jnp.float32),
    )
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4096 * 5000 * 4 / 10


@pytest.mark.parametrize("sizes", [(2, 4, 1), (2, 2, 2)])
@pytest.mark.parametrize("chunk", [3, 1000])
def test_loss_and_gradients_over_eight_devices_equal_dense_optax(chunk, sizes):
    hidden, table, targets = drawn(tokens=60)

    def loss(nats):
        return lambda h, t: (nats(h, t) * jnp.arange(60)).sum()

    wanted = jax.value_and_grad(loss(lambda h, t: dense(h, t, targets)), argnums=(0, 1))(
        hidden, table
    )
    with jax.set_mesh(make_mesh(*sizes)):
        got = jax.jit(
            jax.value_and_grad(
                loss(lambda h, t: token_nll(h, t, targets, chunk=chunk)), argnums=(0, 1)
            )
        )(hidden, table)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize(("devices", "chunk"), [(1, 64), (1, 1024), (8, 64), (8, 1024)])
def test_logits_need_what_the_compiler_allocates_and_no_device_does_the_work_of_another(
    devices, chunk
):
    mesh = make_mesh(devices, 1, 1, devices=jax.devices()[:devices])

    compiled = compiled_gradient(mesh, tokens=2048, items=20_000, chunk=chunk)
    wanted = logits_bytes(chunk, 2048, 20_000, devices)
    each = min(chunk, 2048 // devices)
    assert wanted == 2 * each * 20_000 * 4
    assert wanted <= compiled.memory_analysis().temp_size_in_bytes < 1.2 * wanted + 2**20
    loops = {int(n) for n in re.findall(r'known_trip_count":\{"n":"(\d+)"', compiled.as_text())}
    assert 2048 // (each * devices) in loops | {1}  # a single round is no loop


def test_devices_sum_the_gradient_of_the_table_once_and_not_for_each_chunk():
    compiled = compiled_gradient(make_mesh(2, 4, 1), tokens=1024, items=500, chunk=16)
    found = hlo.Program(compiled.as_text()).collectives(8)
    assert [(c.kind, c.times) for c in found] == [("all-reduce", 1)]


@pytest.mark.parametrize("sizes", [None, (2, 4, 1), (2, 2, 2)])
def test_chunks_without_a_target_are_skipped_by_each_device_alone(sizes):
    targets = np.full((8, 16), -1, np.int32)  # of each device
    for device in range(8):
        targets[device, np.random.default_rng(device).permutation(16)[:4]] = device
    targets = targets.reshape(-1)
    hidden, table, _ = drawn(tokens=128)
    hidden[targets < 0] = np.inf  # a chunk with one of these has no finite gradient

    def loss(hidden, table):
        return token_nll(hidden, table, targets, chunk=4).sum()

    with nullcontext() if sizes is None else jax.set_mesh(make_mesh(*sizes)):
        gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(hidden, table)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_sampled_softmax_over_the_whole_catalog_is_the_full_softmax():
    hidden, table, targets = drawn()

    def sampled(hidden, table):
        return sampled_nll(hidden, table, targets, jax.random.key(0), negatives=50).sum()

    def full(hidden, table):
        return dense(hidden, table, targets).sum()

    got, wanted = (jax.value_and_grad(f, argnums=(0, 1))(hidden, table) for f in (sampled, full))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_sampled_softmax_by_hand():
    hidden, table, targets = drawn(items=9)  # few items: targets are drawn as negatives, too
    key = jax.random.key(3)
    negatives = np.asarray(jax.random.randint(key, (6,), 0, 9))
    got = sampled_nll(hidden, table, targets, key, negatives=6)
    hits = 0
    for n, target in enumerate(targets):
        if target < 0:
            assert got[n] == 0
            continue
        logits = hidden[n].astype(float) @ table.T.astype(float)
        others = [item for item in negatives if item != target]
        hits += len(others) < 6
        mass = np.exp(logits[others]).sum() * 8 / len(others)
        wanted = np.log(np.exp(logits[target]) + mass) - logits[target]
        np.testing.assert_allclose(got[n], wanted, rtol=1e-4, atol=1e-5)
    assert hits > 5


def test_sampled_partition_function_is_unbiased():
    """The mean of exp(loss) over draws is that of the full softmax: p(target)^-1 = sum / own."""
    hidden, table, targets = map(jnp.asarray, drawn())
    keys = jax.random.split(jax.random.key(0), 1_000)
    nll = jax.vmap(lambda key: sampled_nll(hidden, 0.3 * table, targets, key, negatives=20))(keys)
    draws = jnp.exp(nll)
    np.testing.assert_allclose(
        draws.mean(0), np.exp(dense(hidden, 0.3 * table, targets)), rtol=0.04
    )


def test_binary_loss_by_hand_and_never_against_the_target_itself():
    hidden, table, targets = drawn(items=4)
    seen = set()
    for seed in range(30):
        key = jax.random.key(seed)
        got = np.asarray(binary_nll(hidden, table, targets, key))
        for n, target in enumerate(targets):
            if target < 0:
                assert got[n] == 0
                continue
            logits = hidden[n] @ table.T
            possible = [
                np.log1p(np.exp(-logits[target])) + np.log1p(np.exp(logits[other]))
                for other in range(4)
                if other != target
            ]
            near = np.abs(np.array(possible) - got[n])
            assert near.min() < 1e-4
            seen.add((n, int(near.argmin())))
    assert len(seen) == 35 * 3  # every other item is drawn


@pytest.mark.parametrize("kind", ["softmax", "sampled_softmax", "bce"])
def test_the_mean_is_over_targets_and_a_bias_adds_to_the_scores(kind):
    hidden, table, targets = drawn()
    key, bias = jax.random.key(0), np.linspace(-1, 1, 50, dtype=np.float32)
    loss = ItemLoss(kind, negatives=20, chunk=8)
    grid = hidden[:36].reshape(4, 9, 8), targets[:36].reshape(4, 9)
    known = targets[:36] >= 0
    got = loss(grid[0], table, grid[1], key, bias)
    each = {
        "softmax": lambda h, t: token_nll(h, t, targets[:36], chunk=36),
        "sampled_softmax": lambda h, t: sampled_nll(h, t, targets[:36], key, negatives=20),
        "bce": lambda h, t: binary_nll(h, t, targets[:36], key),
    }[kind](np.c_[hidden[:36], np.ones(36, np.float32)], np.c_[table, bias])
    np.testing.assert_allclose(got, np.asarray(each)[known].mean(), rtol=1e-5)
    assert abs(got - loss(grid[0], table, grid[1], key)) > 1e-3


def test_mistakes_are_named():
    with pytest.raises(UserError, match="loss='sofmax' is none of softmax, sampled_softmax, bce"):
        ItemLoss("sofmax")
    with pytest.raises(UserError, match="needs negatives"):
        ItemLoss("sampled_softmax", negatives=0)
