"""Clipping against optax's, and what it adds to the memory of an update."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmsrec_jax.training.clipping import clip_by_global_norm
from mmsrec_jax.training.state import TrainState


@pytest.mark.parametrize("size", [0.0, 0.01, 1.0, 100.0])
def test_is_optax_clipping(size):
    rng = np.random.default_rng(0)
    gradients = {"a": size * rng.normal(size=(5, 3)), "b": size * rng.normal(size=4)}
    gradients = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), gradients)
    gradients["half"] = gradients["a"].astype(jnp.bfloat16)
    got, expected = (
        clip.update(gradients, clip.init(gradients))[0]
        for clip in (clip_by_global_norm(1.5), optax.clip_by_global_norm(1.5))
    )
    assert jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(lambda x: x.dtype, gradients)

    def near(a, b):
        rtol = 1e-2 if a.dtype == jnp.bfloat16 else 1e-6
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=rtol)

    jax.tree.map(near, got, expected)
    if size <= 0.01:
        chex.assert_trees_all_equal(got, gradients)


def test_an_update_holds_no_second_copy_of_the_gradients():
    params = {"a": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}

    def temporary(clip):
        optimizer = optax.chain(clip, optax.adamw(1e-3))
        state = jax.eval_shape(lambda: TrainState.create(params, optimizer))
        update = jax.jit(lambda state, g: state.apply(g, optimizer), donate_argnums=0)
        return update.lower(state, params).compile().memory_analysis().temp_size_in_bytes

    assert temporary(optax.clip_by_global_norm(1.0)) >= 4_000_000  # the measure sees it
    assert temporary(clip_by_global_norm(1.0)) < 4_000
