"""Pooled hidden states of items against a plain forward."""

from collections import Counter

import jax
import numpy as np
import pytest
import toy_items
import toy_model
from flax import nnx

from mmsrec_jax.inference.embed import embed_items, embed_texts
from mmsrec_jax.inputs import example as examples
from mmsrec_jax.inputs.batch import Room, collate
from mmsrec_jax.inputs.item_prompts import ContentSource, TextSource
from mmsrec_jax.runtime.sharding import make_mesh

CATALOG = toy_items.catalog(12)
IMAGE = "<|image_pad|>"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return toy_items.make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def prompt_config(trained):
    return toy_items.prompt_config(trained, fields=("title", "description"))


@pytest.mark.parametrize("content", ["item", "image"])
def test_features_are_the_mean_over_the_items_own_tokens(trained, prompt_config, content):
    model = toy_model.make(trained, rank=0)
    graphdef, state = nnx.split(model)
    counts = Counter()
    source = ContentSource(CATALOG, prompt_config, length=40, content=content)
    found = embed_items(
        model,
        source,
        name=content,
        batch_size=8,
        patches=16,
        workers=0,
        mesh=make_mesh(2, 4, 1),
        counts=counts,
    )
    assert found.shape == (12, 32) and found.dtype == np.float32
    assert counts["images_missing"] == 2

    hidden = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch))
    slot = trained.convert_tokens_to_ids(IMAGE)
    for row in (0, 3, 5, 7, 11):  # the second batch is filled up
        example = source.example(row, 0)
        n = len(example)
        room = Room(1, 48, targets=48, patches=16, patch_width=3 * 4**2)
        batch = collate([[example]], room).model_inputs()
        states = np.asarray(hidden(state, batch))[0, :n]
        own = (example.loss_weights > 0) | (example.tokens == slot)
        wanted = states[own].mean(0) if own.any() else np.zeros(32)  # 3 and 5 have no image
        np.testing.assert_allclose(found[row], wanted, rtol=1e-4, atol=1e-5)


def test_texts_in_one_row_are_read_as_each_alone(trained, prompt_config):
    model = toy_model.make(trained, rank=0)
    texts = TextSource(CATALOG, prompt_config, length=60)
    assert 1 < len(texts) < len(CATALOG) and texts.most > 1
    found = embed_texts(model, texts, name="text", batch_size=8, workers=0, mesh=make_mesh(2, 4, 1))
    assert found.shape == (12, 32) and found.dtype == np.float32

    chat = prompt_config.chat
    graphdef, state = nnx.split(model)
    hidden = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch))
    for item in range(12):
        own = chat.ids(" ".join(CATALOG[item].text.values()))
        example = examples.sequence(chat.encode(chat.head), own)
        batch = collate([[example]], Room(1, 48, targets=48)).model_inputs()
        states = np.asarray(hidden(state, batch))[0, len(example) - len(own) : len(example)]
        np.testing.assert_allclose(found[item], states.mean(0), rtol=1e-4, atol=1e-5)
