"""Beam search in the catalog against every item's text scored by plain forwards, and sorted."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny_mllm as tiny
import toy_items
import toy_model
from flax import nnx
from toy_examples import ROWS, context

from mmsrec_jax.inference import beam
from mmsrec_jax.inference.beam import Search
from mmsrec_jax.inference.trie import CatalogTrie
from mmsrec_jax.inputs.recommend import NextKeywordsSource, keywords_answers
from mmsrec_jax.models import attention
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.arrays import to_devices

STOP, TEXTS = 1, 40
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [3], [5, 5], [7], [20, 3, 3], [9, 8], [4, 4, 4, 4]]
MESH = sharding.make_mesh(devices=jax.devices()[:1])


def make_texts(seed=0):
    """Of 40 items: of 1 to 5 tokens with the last, with common beginnings, some twice."""
    rng = np.random.default_rng(seed)
    texts = [rng.choice([2, 3, 4, 30], rng.integers(0, 5)) for _ in range(TEXTS - 3)]
    texts += [texts[4], texts[7], texts[7]]
    return [np.array([*text, STOP], np.int32) for text in texts]


ITEMS = make_texts()
TRIE = CatalogTrie.build(ITEMS)
DISTINCT = len(np.unique(TRIE.leaf_of_item))


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.fixture(scope="module")
def batch():
    prompts = tiny.prompts(PROMPTS, images=False, length=12)
    return dataclasses.replace(prompts, index=np.arange(len(PROMPTS), dtype=np.int32))


@pytest.fixture(scope="module")
def exact(model, batch):
    """float64[prompts, items], one full forward a pair."""
    found = np.zeros((len(PROMPTS), TEXTS))
    for row in range(len(PROMPTS)):
        for item, text in enumerate(ITEMS):
            after = tiny.full_logprobs(model, batch, row, text[:-1])
            found[row, item] = after[np.arange(len(text)), text].sum(dtype=np.float64)
    return found


def find(model, batch, width, *, left_out=None, mesh=MESH, trie=TRIE):
    graphdef, state = nnx.split(model)
    state = jax.device_put(state, sharding.shardings(state, mesh))
    if left_out is None:
        left_out = np.zeros((len(batch.tokens), 0), np.int32)
    nodes = beam.TrieArrays(trie.tokens, trie.first_child)
    with jax.set_mesh(mesh):
        placed, left_out = to_devices((batch, left_out), mesh)
        settings = Search.of(trie, width)
        out = beam.search_compiled(graphdef, settings, mesh, state, placed, nodes, left_out)
    return jax.tree.map(np.asarray, out[1])


def by_leaf(scores, row):
    return dict(zip(TRIE.leaf_of_item.tolist(), scores[row], strict=True))


@pytest.mark.parametrize("width", [DISTINCT, 60])
def test_as_wide_as_the_catalog_it_is_the_order_of_all_texts(model, batch, exact, width):
    found = find(model, batch, width)
    assert found.leaves.shape == (len(PROMPTS), width)
    for row in range(len(PROMPTS)):
        wanted = by_leaf(exact, row)
        order = sorted(wanted, key=wanted.get, reverse=True)
        assert np.diff(sorted(wanted.values())).min() > 1e-4  # no ties but of equal texts
        assert found.leaves[row, :DISTINCT].tolist() == order
        np.testing.assert_allclose(
            found.scores[row, :DISTINCT], [wanted[leaf] for leaf in order], atol=1e-4
        )
    assert (found.leaves[:, DISTINCT:] == -1).all() and np.isneginf(
        found.scores[:, DISTINCT:]
    ).all()


def beam_by_hand(logprobs, width):
    """Beams in plain Python: texts that are whole leave the beams."""
    beams, whole = {(): 0.0}, {}
    texts = {tuple(text.tolist()) for text in ITEMS}
    while beams:
        grown = {}
        for text, score in beams.items():
            after = logprobs(text)
            for token in {t[len(text)] for t in texts if t[: len(text)] == text}:
                longer = (*text, token)
                (whole if longer in texts else grown)[longer] = score + after[token]
        beams, whole = (
            dict(sorted(d.items(), key=lambda pair: -pair[1])[:width]) for d in (grown, whole)
        )
    return sorted(whole.items(), key=lambda pair: -pair[1])


@pytest.mark.parametrize("width", [1, 3, 8])
def test_narrow_beams_are_those_of_plain_python(model, batch, exact, width):
    found = find(model, batch, width)
    leaf_of = {
        tuple(text.tolist()): leaf for text, leaf in zip(ITEMS, TRIE.leaf_of_item, strict=True)
    }
    worse = 0
    for row in range(len(PROMPTS)):
        logprobs = functools.cache(
            lambda text, r=row: tiny.full_logprobs(model, batch, r, text)[-1]
        )
        wanted = beam_by_hand(logprobs, width)
        kept = found.leaves[row] >= 0
        assert found.leaves[row][kept].tolist() == [leaf_of[text] for text, _ in wanted]
        np.testing.assert_allclose(found.scores[row][kept], [s for _, s in wanted], atol=1e-4)
        # each score is that of its text, so no beam has left the trie or mixed with another
        scores = by_leaf(exact, row)
        expected = [scores[leaf] for leaf in found.leaves[row][kept]]
        np.testing.assert_allclose(found.scores[row][kept], expected, atol=1e-4)
        best = np.sort(list(scores.values()))[::-1][: kept.sum()]
        worse += not np.allclose(best, found.scores[row][kept], atol=1e-4)
    assert worse  # so narrow, it does not find the best


def test_what_is_left_out_takes_no_room(model, batch, exact):
    free = find(model, batch, 6)
    left_out = np.concatenate([free.leaves[:, :3], np.full((len(PROMPTS), 2), -1)], axis=1)
    left_out[3] = -1
    found = find(model, batch, 6, left_out=left_out.astype(np.int32))
    np.testing.assert_array_equal(found.leaves[3], free.leaves[3])
    for row in range(len(PROMPTS)):
        assert not set(found.leaves[row]) & set(left_out[row][left_out[row] >= 0])
        assert (found.leaves[row] >= 0).all()


def test_the_rest_of_the_batch_changes_nothing_and_a_filler_row_does_no_harm(model, batch):
    whole = find(model, batch, 5)
    part = jax.tree.map(lambda x: x.copy(), batch)
    for name in ("tokens", "segment_ids", "positions"):
        getattr(part, name)[4:] = 0
    found = find(model, part, 5)
    np.testing.assert_array_equal(found.leaves[:4], whole.leaves[:4])
    np.testing.assert_allclose(found.scores[:4], whole.scores[:4], atol=1e-5)


def test_one_program_for_all_contents(model, batch):
    find(model, batch, 5)
    size = beam.search_compiled._cache_size()
    other = dataclasses.replace(batch, tokens=(batch.tokens + 1) % 30)
    find(model, other, 5)
    assert beam.search_compiled._cache_size() == size
    find(model, batch, 4)
    assert beam.search_compiled._cache_size() == size + 1


@pytest.mark.parametrize("kernel", ["splash", "flash"])
def test_the_kernels_of_accelerators_find_the_same(kernel, model):
    """Interpreted; beams are so many that a step, and not only the prompts, runs in them."""
    rng = np.random.default_rng(0)
    texts = [np.array([*rng.integers(2, 30, 2), STOP], np.int32) for _ in range(300)]
    prompts = tiny.prompts(
        [rng.integers(2, 37, n).tolist() for n in (40, 150)], images=False, length=160
    )
    trie = CatalogTrie.build(texts)
    nodes, none = beam.TrieArrays(trie.tokens, trie.first_child), np.zeros((2, 0), np.int32)

    def search(name):
        with attention.force(name):
            run = jax.jit(lambda b, n: beam.search(model, b, n, none, Search.of(trie, 130)))
            return jax.tree.map(np.asarray, run(prompts, nodes))

    got, wanted = search(kernel), search("xla")
    np.testing.assert_array_equal(got.leaves, wanted.leaves)
    np.testing.assert_allclose(got.scores, wanted.scores, atol=1e-4)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_eight_devices_find_the_same(sizes, tmp_path):
    tokenizer = toy_items.make_tokenizer(tmp_path)
    prompt_config = toy_items.prompt_config(tokenizer)
    trie = CatalogTrie.build(keywords_answers(context(), prompt_config))
    source = NextKeywordsSource(context(), prompt_config, ROWS, length=200, answer=trie.depth)

    def rows_of(mesh):
        found = beam.search_rows(
            toy_model.make(tokenizer), source, trie, name="toy", width=5, batch_size=16, length=80,
            workers=0, mesh=mesh, left_out=np.zeros((len(ROWS), 0), np.int32),
        )  # fmt: skip
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    one, eight = rows_of(MESH), rows_of(sharding.make_mesh(*sizes))
    assert one[0].tolist() == list(range(len(ROWS))) and len(ROWS) % 16  # the last is filled up
    assert len(np.unique(one[1], axis=0)) > 3
    np.testing.assert_array_equal(eight[0], one[0])
    np.testing.assert_array_equal(eight[1], one[1])
    np.testing.assert_allclose(eight[2], one[2], atol=1e-4)
