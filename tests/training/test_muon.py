"""Muon beside its definition in numpy, layer by layer; the same on eight devices; what it needs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mmsrec_jax.models.layers import Linear, RMSNorm
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.sharding import make_mesh
from mmsrec_jax.training import sft
from mmsrec_jax.training.pairs import CachedSettings
from mmsrec_jax.training.state import TrainState

RATE, DECAY, STEPS = 0.02, 0.1, 4
SETTINGS = CachedSettings(
    trainable="full", optimizer="muon", learning_rate=RATE, weight_decay=DECAY, steps=1000,
    warmup_steps=0, clip_norm=1e9,
)  # fmt: skip


class Layers(nnx.Module):
    def __init__(self):
        common = {"rngs": nnx.Rngs(0), "param_dtype": jnp.float32, "dtype": jnp.float32}
        heads = ("heads", "head_dim")
        self.norm = RMSNorm(8, 1e-6, layers=3, param_dtype=jnp.float32)
        self.q = Linear((8,), (2, 3), ("embed", *heads), layers=3, bias=True, **common)
        self.o = Linear((2, 3), (8,), (*heads, "embed"), layers=3, bias=False, **common)
        self.merge = Linear((6,), (8,), ("merged", "embed"), layers=None, bias=False, **common)
        self.head = Linear((8,), (12,), ("embed", "vocab"), layers=None, bias=False, **common)


MATRICES = {"q": (8, 6), "o": (6, 8), "merge": (6, 8)}


def orthogonal(x):
    """Five quintic Newton-Schulz iterations, as Jordan et al. have them."""
    if x.shape[0] > x.shape[1]:
        return orthogonal(x.T).T
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def of_params(function, params):
    """`function(path, array)` of each parameter, as a flat dict of numpy arrays by path."""
    flat = nnx.to_flat_state(params)
    return {path: function(path, np.asarray(x[...], np.float64)) for path, x in flat}


def test_kernels_move_by_orthogonal_factors_and_the_rest_by_adamw():
    params = nnx.state(Layers(), nnx.Param)
    optimizer = sft.make_optimizer(SETTINGS)
    adamw = optax.adamw(
        optax.warmup_cosine_decay_schedule(0.0, RATE, 0, 1000, 0.1 * RATE),
        b2=0.98, weight_decay=DECAY, nesterov=True,
    )  # fmt: skip
    state, beside = optimizer.init(params), adamw.init(params)
    update = jax.jit(optimizer.update)
    momentum = of_params(lambda _, x: np.zeros_like(x), params)
    rng, others = np.random.default_rng(0), params
    for step in range(1, STEPS + 1):
        gradients = jax.tree.map(
            lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params
        )
        before = of_params(lambda _, x: x, params)
        changes, state = update(gradients, state, params)
        params = optax.apply_updates(params, changes)
        expected, beside = adamw.update(gradients, beside, others)
        others = optax.apply_updates(others, expected)
        rate = 0.1 * RATE + 0.9 * RATE * (1 + np.cos(np.pi * (step - 1) / 1000)) / 2
        found, plain = (of_params(lambda _, x: x, tree) for tree in (params, others))
        for path, gradient in of_params(lambda _, x: x, gradients).items():
            momentum[path] = 0.95 * momentum[path] + 0.05 * gradient
            if path[0] not in MATRICES or path[1] != "kernel":
                np.testing.assert_allclose(found[path], plain[path], rtol=2e-5, atol=1e-6)
                continue
            ahead = 0.95 * momentum[path] / (1 - 0.95 ** (step + 1))
            ahead += 0.05 * gradient / (1 - 0.95**step)
            shape = MATRICES[path[0]]
            moved = np.stack([orthogonal(x) for x in ahead.reshape(-1, *shape)])
            moved = 0.2 * np.sqrt(max(shape)) * moved.reshape(gradient.shape)
            wanted = before[path] - rate * (moved + DECAY * before[path])
            np.testing.assert_allclose(found[path], wanted, rtol=1e-4, atol=1e-5)


def test_eight_devices_make_the_same_update():
    optimizer = sft.make_optimizer(SETTINGS)

    def updated(devices, **axes):
        mesh = make_mesh(devices=jax.devices()[:devices], **axes)
        params = nnx.state(Layers(), nnx.Param)
        with jax.set_mesh(mesh):
            params = jax.device_put(params, sharding.shardings(params, mesh))
            state = TrainState.create(params, optimizer)
            step = jax.jit(
                lambda state: state.apply(jax.tree.map(jnp.cos, state.params), optimizer),
                out_shardings=sharding.shardings(state, mesh),
            )
            return of_params(lambda _, x: x, step(step(state)).params)

    alone, spread = updated(1), updated(8, data=2, fsdp=2, tensor=2)
    for path, x in alone.items():
        np.testing.assert_allclose(spread[path], x, atol=2e-5, err_msg=str(path))


def test_adapters_alone_have_no_kernel_to_move():
    with pytest.raises(UserError, match="config.cached.optimizer='muon' updates kernels"):
        CachedSettings(optimizer="muon").check("config.cached")
    CachedSettings(optimizer="muon", trainable="connector+lora").check("config.cached")
