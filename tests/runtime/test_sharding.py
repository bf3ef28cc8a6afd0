"""The mesh, the table, and one training gradient on 8 devices against 1."""

import jax
import jax.numpy as jnp
import mllm_batches as mb
import numpy as np
import pytest
from flax import nnx

from mmsrec_jax.models import lora
from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.models.token_logprobs import token_logprobs
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.errors import UserError

P = jax.sharding.PartitionSpec


def test_mesh_fills_up_and_names_what_does_not_divide():
    assert dict(sharding.make_mesh().shape) == {"data": 1, "fsdp": 8, "tensor": 1}
    assert dict(sharding.make_mesh(2, 2, -1).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert sharding.make_mesh(devices=jax.devices()[:1]).size == 1
    with pytest.raises(UserError, match="data=3.*8 devices"):
        sharding.make_mesh(data=3)
    with pytest.raises(UserError, match="8 devices"):
        sharding.make_mesh(data=2, fsdp=2, tensor=1)
    with pytest.raises(UserError, match="at most one"):
        sharding.make_mesh(data=-1, fsdp=-1)


def test_table_names_only_mesh_axes():
    assert set(sum(sharding.LOGICAL_AXES.values(), ())) == set(sharding.MESH_AXES)


def test_constrain():
    x = jnp.ones((4, 6, 2))
    assert sharding.constrain(x, "batch", "length", "heads") is x  # no mesh
    with pytest.raises(ValueError, match="'batch' and 'embed' collide on 'fsdp'"):
        sharding.constrain(x, "batch", None, "embed")
    with pytest.raises(ValueError, match="names 2 axes"):
        sharding.constrain(x, "batch", "length")
    with pytest.raises(KeyError):
        sharding.constrain(x, "batch", "length", "colour")
    with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
        y = jax.jit(lambda x: sharding.constrain(x, "batch", "length", "heads"))(x)
        odd = jax.jit(lambda x: sharding.constrain(x, "batch", "length", "heads"))(x[:3])
    assert y.sharding.shard_shape(y.shape) == (1, 6, 1)
    assert odd.sharding.shard_shape(odd.shape) == (3, 6, 1)


def test_the_gradient_of_a_weight_stays_in_its_shards():
    kernel, x = jnp.arange(32.0).reshape(8, 4), jnp.arange(16.0).reshape(2, 8)

    def whole(kernel):
        return sharding.weight(kernel, ("embed", "mlp"), ("features", "mlp"))

    def loss(kernel, x):
        return jnp.sum((x @ whole(kernel)) ** 2)

    expected = jax.grad(loss)(kernel, x)
    np.testing.assert_array_equal(expected, 2 * x.T @ (x @ kernel))
    with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
        used, gradient = jax.jit(lambda *both: (whole(both[0]), jax.grad(loss)(*both)))(kernel, x)
    assert used.sharding.shard_shape(used.shape) == (8, 2)
    assert gradient.sharding.shard_shape(gradient.shape) == (4, 2)
    np.testing.assert_array_equal(gradient, expected)


def abstract():
    return nnx.state(nnx.eval_shape(lambda: MLLM(mb.config(), rngs=nnx.Rngs(0))))


def test_parameters_are_sharded_by_their_names():
    state = abstract()
    placed = sharding.shardings(
        {"params": state, "step": jnp.int32(0)}, sharding.make_mesh(2, 2, 2)
    )
    assert jax.tree.structure(placed["params"]) == jax.tree.structure(state)
    layers, tower = (placed["params"][part]["layers"] for part in ("text", "vision"))
    assert layers["q"]["kernel"].get_value().spec == P(None, "fsdp", "tensor", None)
    assert layers["down"]["kernel"].get_value().spec == P(None, "tensor", "fsdp")
    assert tower["up"]["kernel"].get_value().spec == P(None, "fsdp", None)
    assert placed["step"].spec == P()


def test_uneven_parameters():
    state = abstract()
    mesh = sharding.make_mesh(1, 2, 4)  # two kv heads over four devices: replicated
    assert (
        sharding.shardings(state, mesh)["text"]["layers"]["k"]["kernel"].get_value().spec[2] is None
    )
    with pytest.raises(UserError, match="'heads' of size 4"):
        sharding.shardings(state, sharding.make_mesh(1, 1, 8))


def gradients(mesh, adapters):
    model = mb.model(vision=not adapters)
    if adapters:
        lora.add(model, 4, 4.0, rngs=nnx.Rngs(1))
        for linear in lora.adapted(model).values():
            linear.lora_b[...] = jnp.full(linear.lora_b.shape, 0.01)
    rng = np.random.default_rng(0)
    grids = [] if adapters else [(4, 4)]
    rows = [mb.example(rng, grids, 3 + i, suffixes=(2, 3)) for i in range(8)]
    batch = mb.batch(rows, 24, 16)
    graphdef, params = nnx.split(model)

    def loss(params, batch):
        model = nnx.merge(graphdef, params)
        logprobs = token_logprobs(model, model(batch), batch.tokens, chunk=16)
        return -jnp.sum(logprobs * (batch.segment_ids > 0))

    with jax.set_mesh(mesh):
        where = sharding.shardings(params, mesh)
        params = jax.device_put(params, where)
        batch = jax.device_put(batch, sharding.batch_sharding(mesh))
        value, grads = jax.jit(jax.value_and_grad(loss), out_shardings=(None, where))(params, batch)
    return float(value), grads


@pytest.mark.parametrize(
    "sizes, adapters", [((2, 2, 2), False), ((1, 4, 2), True)], ids=["suffixes", "adapters"]
)
def test_eight_devices_give_the_gradients_of_one(sizes, adapters, capfd):
    """Families: models/test_eight_devices.py."""
    one, expected = gradients(sharding.make_mesh(devices=jax.devices()[:1]), adapters)
    value, got = gradients(sharding.make_mesh(*sizes), adapters)
    assert value == pytest.approx(one, rel=1e-5)
    for (path, a), (_, b) in zip(
        jax.tree.leaves_with_path(got), jax.tree.leaves_with_path(expected), strict=True
    ):
        scale = float(jnp.abs(b).max())
        assert scale > 1e-3, path
        np.testing.assert_allclose(a, b, atol=1e-4 * scale, err_msg=jax.tree_util.keystr(path))
    gate = got["text"]["layers"]["gate"]["kernel"][...]
    fsdp, tensor = sizes[1:]
    assert gate.sharding.shard_shape(gate.shape) == (len(gate), 32 // fsdp, 48 // tensor)
    assert "full rematerialization" not in capfd.readouterr().err  # the partitioner's warning
