"""Chunked token log-probabilities against the full log-softmax, and what they keep in memory."""

import jax
import jax.numpy as jnp
import mllm_batches as mb
import numpy as np
import pytest
from flax import nnx

from mmsrec_jax.models.mllm import MLLM
from mmsrec_jax.models.token_logprobs import token_logprobs


def full(model, hidden, tokens):
    logits = jax.nn.log_softmax(model.unembed(hidden), axis=-1)[:, :-1]
    picked = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.pad(picked, [(0, 0), (1, 0)])


@pytest.mark.parametrize("chunk,tied", [(1, True), (7, False), (1024, True)])
def test_equals_the_full_log_softmax(chunk, tied):
    rng = np.random.default_rng(0)
    graphdef, state = nnx.split(mb.model(vision=False, tied=tied))
    hidden = rng.normal(size=(3, 11, 32)).astype(np.float32)
    tokens = rng.integers(0, 64, (3, 11)).astype(np.int32)
    weights = rng.normal(size=(3, 11)).astype(np.float32)

    def value_and_gradients(logprobs):
        def total(state, hidden):
            out = logprobs(nnx.merge(graphdef, state), hidden)
            return jnp.sum(out * weights), out

        (_, out), gradients = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(
            state, hidden
        )
        return jax.tree.leaves((out, gradients))

    got = value_and_gradients(lambda m, h: token_logprobs(m, h, tokens, chunk=chunk))
    expected = value_and_gradients(lambda m, h: full(m, h, tokens))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert (np.asarray(got[0])[:, 0] == 0).all()


def test_one_token_rows_have_no_target():
    model = mb.model(vision=False)
    out = token_logprobs(model, jnp.ones((2, 1, 32)), jnp.ones((2, 1), jnp.int32))
    np.testing.assert_array_equal(out, np.zeros((2, 1)))


def test_memory_of_the_gradient_does_not_grow_with_tokens_times_vocabulary():
    batch, vocab, lengths = 4, 30_000, (256, 1024)
    config = mb.config(vision=False, vocab_size=vocab)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: MLLM(config, rngs=nnx.Rngs(0))))

    def growth(logprobs):
        def total(state, hidden, tokens):
            return jnp.sum(logprobs(nnx.merge(graphdef, state), hidden, tokens))

        sizes = []
        for length in lengths:
            hidden = jax.ShapeDtypeStruct((batch, length, 32), jnp.float32)
            tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
            compiled = jax.jit(jax.grad(total, (0, 1))).lower(state, hidden, tokens).compile()
            sizes.append(compiled.memory_analysis().temp_size_in_bytes)
        return (sizes[1] - sizes[0]) / (batch * (lengths[1] - lengths[0]))

    assert growth(full) > 4 * vocab  # bytes a token: the measure sees the logits
    assert growth(lambda *x: token_logprobs(*x, chunk=64)) < 4 * vocab / 50
