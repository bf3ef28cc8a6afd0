"""Attention and its masks against a plain float64 loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmsrec_jax.models.attention import Layout, attention, same_segment, visibility

B, L, HEADS, KV_HEADS, DIM = 2, 13, 6, 2, 4


def inputs():
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.normal(size=(B, L, n, DIM)).astype(np.float32) for n in (HEADS, KV_HEADS, KV_HEADS)
    )
    segments = np.array([[1] * 6 + [2] * 5 + [0] * 2, [0] + [3] * 10 + [0] * 2])
    branches = np.array([[0, 0, 1, 1, 2, 2, 0, 1, 0, 2, 1, 0, 0], [0, 0, 1, 2, 1, 2, 3] + [3] * 6])
    return q, k, v, segments.astype(np.int32), branches.astype(np.int32)


def seen(segments, branches, b, t, causal):
    return [
        s
        for s in range(L)
        if segments[b, s] == segments[b, t]
        and (not causal or (s <= t and branches[b, s] in (0, branches[b, t])))
    ]


@pytest.mark.parametrize("causal", [True, False])
def test_matches_a_plain_softmax(causal):
    q, k, v, segments, branches = inputs()
    slots = np.broadcast_to(np.arange(L), segments.shape)
    layout = Layout(segments, branches, slots)
    visible = visibility(layout, layout) if causal else same_segment(segments, segments)
    out = np.asarray(attention(q, k, v, visible))
    assert np.isfinite(out).all()
    for b in range(B):
        for t in range(L):
            if segments[b, t] == 0:
                continue
            s = seen(segments, branches, b, t, causal)
            for n in range(HEADS):
                kv = n // (HEADS // KV_HEADS)
                scores = k[b, s, kv].astype(np.float64) @ q[b, t, n] / np.sqrt(DIM)
                weights = np.exp(scores - scores.max())
                expected = weights / weights.sum() @ v[b, s, kv]
                np.testing.assert_allclose(out[b, t, n], expected, atol=1e-6)


def test_rows_that_see_nothing_pass_no_nan_to_gradients():
    q, k, v, segments, _ = inputs()
    visible = same_segment(jnp.zeros_like(segments), segments)

    def total(q, k, v):
        return jnp.sum(attention(q, k, v, visible) ** 2)

    for gradient in jax.grad(total, (0, 1, 2))(q, k, v):
        assert np.isfinite(gradient).all()


def test_softmax_is_float32_for_bfloat16_inputs():
    """512 equal scores: weights summed in bf16 would lose most of them."""
    ones = jnp.ones((1, 512, 1, 4), jnp.bfloat16)
    visible = jnp.ones((1, 512, 512), bool)
    np.testing.assert_allclose(
        attention(ones, ones, ones, visible).astype(np.float32), 1, rtol=4e-3
    )
