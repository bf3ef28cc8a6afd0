"""Prefill and decode against one forward pass over the whole sequence."""

import jax
import mllm_batches as mb
import numpy as np
import pytest
from flax import nnx

from mmsrec_jax.models import kv_cache

STEPS = 4


def split(row):
    """The prompt, and the last STEPS tokens one by one."""
    n = len(row["tokens"]) - STEPS
    at = np.arange(len(row["tokens"]))
    text = {k: v for k, v in row.items() if not k.startswith("patch")}
    return mb.select(row, at < n), [mb.select(text, at == n + i) for i in range(STEPS)]


@pytest.mark.parametrize("fields", [{}, mb.QWEN3], ids=["qwen2_5_vl", "qwen3_vl"])
def test_prefill_and_decode_equal_the_full_forward(fields):
    """Right-padded prompts of different lengths with images; two samples of each."""
    rng, model = np.random.default_rng(0), mb.model(**fields)
    rows = [mb.example(rng, [(4, 4)], 3 + STEPS), mb.example(rng, [(2, 4), (4, 6)], 8 + STEPS)]
    lengths = [len(row["tokens"]) - STEPS for row in rows]
    width = max(lengths) + 2
    graphdef, state = nnx.split(model)

    full = jax.jit(lambda state, b: nnx.merge(graphdef, state)(b))
    expected = np.asarray(full(state, mb.batch(rows, width + STEPS, 32)))

    step = jax.jit(lambda state, b, cache: nnx.merge(graphdef, state)(b, cache=cache))
    prompts, steps = zip(*(split(row) for row in rows), strict=True)
    cache = kv_cache.init(model.config, 2, width + STEPS, "float32")
    hidden, cache = step(state, mb.batch(prompts, width, 32), cache)
    for b, n in enumerate(lengths):
        np.testing.assert_allclose(hidden[b, :n], expected[b, :n], atol=2e-5)
    cache = kv_cache.repeat(cache, 2)
    assert cache.k.shape == (model.config.text.layers, 4, width + STEPS, 2, 8)
    for i in range(STEPS):
        tokens = mb.batch([row[i] for row in steps for _ in range(2)], 1)
        hidden, cache = step(state, tokens, cache)
        for b, n in enumerate(lengths):
            for sample in (2 * b, 2 * b + 1):
                np.testing.assert_allclose(hidden[sample, 0], expected[b, n + i], atol=2e-5)
    assert int(cache.length) == width + STEPS


def test_too_many_tokens_for_the_cache():
    model = mb.model(vision=False)
    batch = mb.batch([mb.example(np.random.default_rng(1), [], 6)], 6)
    with pytest.raises(ValueError, match="6 tokens do not fit a cache of 5"):
        model(batch, cache=kv_cache.init(model.config, 1, 5, "float32"))
