"""Adapters: no-op at the start, ignored on request, equal to their merged form."""

import jax
import mllm_batches as mb
import numpy as np
import pytest
from flax import nnx

from mmsrec_jax.models import lora, trainable
from mmsrec_jax.runtime.errors import UserError


def run(model, adapters=True):
    row = mb.example(np.random.default_rng(0), [(4, 4)], 6)
    return mb.run(model, [row], adapters=adapters)[0]


def perturb(model, seed=1):
    rng = np.random.default_rng(seed)
    for linear in lora.adapted(model).values():
        linear.lora_b[...] = rng.normal(size=linear.lora_b.shape).astype(np.float32) * 0.1


def test_life_of_adapters():
    model = mb.model()
    base = run(model)
    kernels = np.asarray(model.text.layers.o.kernel[...])
    lora.add(model, 4, 8.0, rngs=nnx.Rngs(1))
    np.testing.assert_array_equal(run(model), base)  # lora_b is zero

    perturb(model)
    adapted = run(model)
    assert np.abs(adapted - base).max() > 1e-2
    np.testing.assert_array_equal(run(model, adapters=False), base)

    lora.merge(model)
    assert not lora.adapted(model)
    assert not jax.tree.leaves(nnx.state(model, nnx.LoRAParam))
    assert np.abs(np.asarray(model.text.layers.o.kernel[...]) - kernels).max() > 1e-3
    np.testing.assert_allclose(run(model), adapted, atol=2e-5)


def test_adapters_are_the_textbook_formula():
    """Kernels of a fresh model + (alpha / rank) a @ b, written out per layer in numpy."""
    model, expected = mb.model(), mb.model()
    lora.add(model, 3, 6.0, rngs=nnx.Rngs(2))
    perturb(model)
    assert tuple(lora.adapted(model)) == lora.TARGETS
    for target, linear in lora.adapted(model).items():
        a, b = np.asarray(linear.lora_a[...]), np.asarray(linear.lora_b[...])
        kernel = getattr(expected.text.layers, target).kernel
        update = np.stack([a[i].reshape(-1, 3) @ b[i].reshape(3, -1) for i in range(2)])
        kernel[...] = kernel[...] + 2.0 * update.reshape(kernel.shape)
    np.testing.assert_allclose(run(model), run(expected), atol=5e-5)


def test_trainable_selects_only_adapters():
    model = mb.model()
    everything = len(jax.tree.leaves(nnx.state(model, trainable.filter_of("full"))))
    assert everything == len(jax.tree.leaves(nnx.state(model)))
    lora.add(model, 2, 2.0, ("q", "down"), rngs=nnx.Rngs(0))
    _, trained, frozen = nnx.split(model, trainable.filter_of("lora"), ...)
    assert len(jax.tree.leaves(trained)) == 4
    assert len(jax.tree.leaves(frozen)) == everything


def test_mistakes_are_named():
    model = mb.model(vision=False)
    with pytest.raises(UserError, match="head"):
        lora.add(model, 2, 2.0, ("q", "head"), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="rank"):
        lora.add(model, 0, 2.0, rngs=nnx.Rngs(0))
    lora.add(model, 2, 2.0, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="already"):
        lora.add(model, 2, 2.0, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="trainable"):
        trainable.filter_of("some")
