"""8 simulated devices give what 1 gives, for each tower and decoder: logits, loss, gradients, an
update. llava_clip and qwen3_vl have the decoders of llama and qwen3; qwen2 has no tower.

Rollouts and rankings: decoding/test_meshes.py.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mmsrec_jax
from mmsrec_jax.api import _logits
from mmsrec_jax.models.token_logprobs import token_logprobs
from mmsrec_jax.runtime import sharding
from mmsrec_jax.training.state import TrainState

GOLDEN = Path(__file__).parents[1] / "golden"
RATE = 1e-2
# The first update of Adam is the sign of the gradient, which rounding decides where that is nearly
# zero. With this eps (gradients are clipped to norm 1) it is smooth in the gradient.
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE, b2=0.98, eps=1e-3))


def train_step(directory, mesh):
    """(loss, logits, gradients, what the update adds to the parameters / RATE)."""
    stored = np.load(directory / "golden.npz")
    ids, mask = stored["input_ids"], stored["attention_mask"]
    model = mmsrec_jax.load(directory, mesh=mesh)
    images = [stored[name] for name in ("image_0", "image_1") if name in stored]
    batch = _logits.make_batch(model, ids, mask, [images, []])
    answer = np.arange(ids.shape[1]) >= mask.sum(1, keepdims=True) - 4
    weights = (answer & (mask > 0)).astype(np.float32)
    batch = dataclasses.replace(batch, loss_weights=weights)
    batch = jax.tree.map(lambda x: np.tile(x, (4,) + (1,) * (x.ndim - 1)), batch)
    scale = np.linspace(0.5, 1.5, 8, dtype=np.float32)[:, None]
    batch = dataclasses.replace(batch, loss_weights=batch.loss_weights * scale)
    graphdef, params = nnx.split(model)

    def loss(params, batch):
        model = nnx.merge(graphdef, params)
        hidden = model(batch)
        logprobs = token_logprobs(model, hidden, batch.tokens)
        return -jnp.sum(logprobs * batch.loss_weights), model.unembed(hidden)

    def step(state, batch):
        (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
        return value, logits, grads, state.apply(grads, OPTIMIZER).params

    with jax.set_mesh(mesh):
        where = sharding.shardings(params, mesh)
        state = TrainState.create(params, OPTIMIZER)
        batch = jax.device_put(batch, sharding.batch_sharding(mesh))
        out = jax.jit(step, out_shardings=(None, None, where, where))(state, batch)
    value, logits, grads, new = out
    added = jax.tree.map(lambda a, b: (np.asarray(a) - np.asarray(b)) / RATE, new, params)
    return float(value), np.asarray(logits), grads, added


def largest(tree) -> float:
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


@functools.cache
def on_one_device(name):
    return train_step(GOLDEN / name, sharding.make_mesh(devices=jax.devices()[:1]))


MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]
NAMES = ("qwen2_vl", "qwen3_vl", "llava_clip", "llava_dinov2", "internvl", "qwen2")
CASES = [("qwen2_5_vl", sizes) for sizes in MESHES] + [(name, (1, 4, 2)) for name in NAMES]


@pytest.mark.parametrize("name, sizes", CASES)
def test_eight_devices_equal_one(name, sizes, capfd):
    value, logits, grads, added = on_one_device(name)
    got = train_step(GOLDEN / name, sharding.make_mesh(*sizes))
    assert got[0] == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(got[1], logits, atol=1e-4)
    scale = largest(grads)
    for (path, a), b in zip(jax.tree.leaves_with_path(got[2]), jax.tree.leaves(grads), strict=True):
        # keys' biases have no gradient but rounding
        atol = 1e-4 * max(float(jnp.abs(b).max()), scale / 100)
        np.testing.assert_allclose(a, b, atol=atol, err_msg=jax.tree_util.keystr(path))
    assert largest(added) > 0.5  # in units of the learning rate
    for (path, a), b in zip(jax.tree.leaves_with_path(got[3]), jax.tree.leaves(added), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3, err_msg=jax.tree_util.keystr(path))
    gate = got[2]["text"]["layers"]["gate"]["kernel"][...]
    layers, hidden, mlp = gate.shape
    _, fsdp, tensor = sizes
    assert gate.sharding.shard_shape(gate.shape) == (layers, hidden // fsdp, mlp // tensor)
    assert "full rematerialization" not in capfd.readouterr().err  # the partitioner's warning
