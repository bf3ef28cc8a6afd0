"""Flash attention of small blocks, interpreted, beside XLA's; who is visited beside brute force."""

import functools

import jax
import jax.numpy as jnp
import mllm_batches as mb
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from mmsrec_jax.models import attention as lib
from mmsrec_jax.models import block_mask, blocks, flash
from mmsrec_jax.models.attention import Layout, visibility


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(block_mask, "KEPT", 32)
    monkeypatch.setattr(block_mask, "STREAMED", 16)


def packed(lengths, prefixes, suffixes, total):
    """A row [1, total] in the order of prompts: segments of a prefix and suffixes of 5 tokens."""
    segments, groups = np.zeros((2, total), np.int32)
    at = 0
    for segment, length in enumerate(lengths, 1):
        segments[at : at + length] = segment
        tail = np.arange(length) - prefixes
        groups[at : at + length] = np.where(tail < 0, 0, np.minimum(tail // 5 + 1, suffixes))
        at += length
    return Layout(segments[None], groups[None], np.arange(total, dtype=np.int32)[None])


ROW = packed([30, 70, 3, 30, 20], 20, 4, 160)


@jax.jit
def mask_of(layout, keys=None):
    keys = layout if keys is None else keys
    return block_mask.block_mask(
        block_mask.tokens(*layout, queries=True), block_mask.tokens(*keys, queries=False)
    )


@pytest.mark.parametrize(
    "heads, kv_heads, head_dim, dtype, atol",
    [(9, 3, 20, "float32", 2e-5), (16, 2, 8, "bfloat16", 4e-2)],
)
def test_grouped_heads_of_any_size(heads, kv_heads, head_dim, dtype, atol):
    rng = np.random.default_rng(0)
    length = ROW.slots.shape[1] - 10  # no multiple of a block
    layout = Layout(*(ids[:, :length] for ids in ROW))
    live = (layout.segment_ids > 0)[..., None, None]
    q, k, v, cotangent = (
        jnp.asarray(rng.normal(size=(1, length, n, head_dim)), dtype)
        for n in (heads, kv_heads, kv_heads, heads)
    )

    mask, dense = mask_of(layout), visibility(layout, layout)

    @functools.partial(jax.jit, static_argnums=0)
    def both(attend, mask, *inputs):
        out, back = jax.vjp(lambda *qkv: jnp.where(live, attend(*qkv, mask), 0), *inputs)
        return out, *back(cotangent)

    got = both(functools.partial(flash.attention, interpret=True), mask, q, k, v)
    expected = both(blocks.dense, dense, q, k, v)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(*(x.astype(np.float32) for x in (a, b)), atol=atol)


def pairs(blocks, rows, columns):
    """bool[blocks, others] from the lists of one row."""
    visited, full = np.zeros((2, rows, columns), bool)
    for i in range(rows):
        visited[i, blocks.indices[0, i, : blocks.visited[0, i]]] = True
        full[i, blocks.indices[0, i, : blocks.full[0, i]]] = True
    return visited, full


def brute(dense, kept, streamed):
    """Whether any and whether all pairs are seen in blocks of a mask [T, S], which is padded."""
    dense = np.pad(dense, [(0, -n % 32) for n in dense.shape])
    tiles = dense.reshape(len(dense) // kept, kept, -1, streamed)
    return tiles.any((1, 3)), tiles.all((1, 3))


@pytest.mark.parametrize("causal, suffixes", [(True, True), (True, False), (False, False)])
def test_visited_blocks_are_those_with_a_visible_pair(causal, suffixes):
    layout = ROW if suffixes else ROW._replace(suffix_ids=None)
    dense = np.asarray(visibility(layout, layout))[0]
    if not causal:
        dense = np.asarray(lib.same_segment(layout.segment_ids, layout.segment_ids))[0]
        layout = layout._replace(slots=None)
    mask = mask_of(layout)
    for lists, pair in ((mask.of_queries, dense), (mask.of_keys, dense.T)):
        seen, whole = brute(pair, 32, 16)
        visited, full = pairs(lists, *seen.shape)
        np.testing.assert_array_equal(visited, seen)
        assert not (full & ~whole).any()
        if not suffixes:
            assert full.sum() == whole.sum() > 0


def test_mixed_ids_lose_no_pair():
    """Ids in no order, with other keys than queries, are visited too often and never too rarely."""
    rng = np.random.default_rng(1)
    keys = Layout(*(rng.integers(0, high, (1, 96)).astype(np.int32) for high in (4, 3, 96)))
    queries = Layout(*(ids[:, 20:70] for ids in keys))
    dense = np.asarray(visibility(queries, keys))[0]
    mask = mask_of(queries, keys)
    for lists, pair in ((mask.of_queries, dense), (mask.of_keys, dense.T)):
        seen, whole = brute(pair, 32, 16)
        visited, full = pairs(lists, *seen.shape)
        assert (visited >= seen).all() and (full <= whole).all()


def sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars if variable.aval.shape)
        for inner in jaxprs_in_params(equation.params):
            yield from sizes(inner)


def test_a_model_has_no_array_of_all_pairs():
    rng = np.random.default_rng(0)
    rows = [mb.example(rng, [(16, 12)], 300, suffixes=(100, 60)) for _ in range(2)]
    batch = mb.batch(rows, 1024, 256)
    graphdef, state = nnx.split(mb.model())

    def largest(name):
        with lib.force(name):
            return max(sizes(jax.make_jaxpr(lambda b: nnx.merge(graphdef, state)(b))(batch).jaxpr))

    assert largest("xla") >= 2 * 1024**2 > 8 * largest("flash")


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
def test_the_masked_score_times_the_scale_is_exact(head_dim):
    """Queries that see nothing of the first block they visit subtract it from itself; compiled, the
    multiplication is not rounded on one side, and a difference of 1e22 would be an infinite weight.
    Tests are not optimized, so that this is not seen in results."""
    scale = np.float32(np.log2(np.e) * head_dim**-0.5)
    rounded = np.float32(flash.MASKED) * scale
    assert float(rounded) == float(np.float32(flash.MASKED)) * float(scale)  # of 64 bits
