"""Items as an MLLM sees them: the prompts, and pooled hidden states against a plain forward."""

from collections import Counter

import jax
import numpy as np
import pytest
import toy_items
import toy_model
from flax import nnx
from toy_items import CORRUPT, NO_IMAGE

from mmsrec_jax.inference.embed import embed_items
from mmsrec_jax.inputs.item_prompts import ContentSource
from mmsrec_jax.runtime.sharding import make_mesh

CATALOG = toy_items.catalog(12)
IMAGE = "<|image_pad|>"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return toy_items.make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def prompt_config(trained):
    return toy_items.prompt_config(trained, fields=("title", "description"))


def source(prompt_config, content, **options):
    return ContentSource(CATALOG, prompt_config, **dict(length=40, content=content) | options)


@pytest.mark.parametrize("content", ["text", "image", "item"])
def test_a_prompt_is_the_opening_and_the_item_itself(trained, prompt_config, content):
    for i, example in enumerate(map(source(prompt_config, content).example, range(12), range(12))):
        slots = 0 if content == "text" or i in (NO_IMAGE, CORRUPT) else (1, 2, 4)[i % 3]
        image = f"<|vision_start|>{IMAGE * slots}<|vision_end|>" if slots else ""
        text = "" if content == "image" else " ".join(CATALOG[i].text.values())
        assert trained.decode(example.tokens) == prompt_config.chat.head + image + text
        own = example.tokens[example.loss_weights > 0]
        assert trained.decode(own) == text
        assert example.index == i and len(example.images) == (slots > 0)


def test_a_long_text_loses_its_tail_not_the_image(trained, prompt_config):
    opening = len(prompt_config.chat.ids(prompt_config.chat.head))
    example = source(prompt_config, "item", length=opening + 9).example(2, 2)  # 4 slots, 2 marks
    assert (example.tokens == trained.convert_tokens_to_ids(IMAGE)).sum() == 4
    assert 0 < example.num_targets <= 3 and example.counts["texts_cut"] == 1


@pytest.mark.parametrize("content", ["text", "image"])
def test_features_are_the_mean_over_the_items_own_tokens(trained, prompt_config, content):
    model = toy_model.make(trained, rank=0)
    graphdef, state = nnx.split(model)
    order, counts = np.array([7, 2, 3, 5, 0, 11, 4, 9, 8]), Counter()
    found = embed_items(
        model,
        source(prompt_config, content, rows=order),
        name=content,
        batch_size=8,
        patches=16 if content == "image" else 0,
        workers=0,
        mesh=make_mesh(2, 4, 1),
        counts=counts,
    )
    assert found.shape == (9, 32) and found.dtype == np.float32
    assert counts["images_missing"] == (2 if content == "image" else 0)

    hidden = jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch))
    slot = trained.convert_tokens_to_ids(IMAGE)
    for row in (0, 2, 3, 8):
        example = source(prompt_config, content).example(int(order[row]), 0)
        n = len(example)
        batch = {
            "tokens": np.zeros((1, 48), np.int32),
            "positions": np.zeros((1, 3, 48), np.int32),
            "segment_ids": np.zeros((1, 48), np.int32),
            "suffix_ids": np.zeros((1, 48), np.int32),
        }
        batch["tokens"][0, :n], batch["positions"][0, :, :n] = example.tokens, example.positions
        batch["segment_ids"][0, :n] = 1
        if content == "image":
            patches = np.zeros((1, 16, source(prompt_config, content).items.patch_width), np.uint8)
            batch |= {"patches": patches, "patch_hw": np.zeros((1, 16, 2), np.int32)}
            names = ("patch_image_ids", "patch_window_ids")
            batch |= {name: np.zeros((1, 16), np.int32) for name in names}
            for image in example.images:
                p = len(image["patches"])
                batch["patches"][0, :p], batch["patch_hw"][0, :p] = image["patches"], image["hw"]
                batch["patch_image_ids"][0, :p] = 1
                batch["patch_window_ids"][0, :p] = image["window_ids"]
        states = np.asarray(hidden(state, batch))[0, :n]
        own = (example.loss_weights > 0) | (example.tokens == slot)
        wanted = states[own].mean(0) if own.any() else np.zeros(32)  # 3 and 5 have no image
        np.testing.assert_allclose(found[row], wanted, rtol=1e-4, atol=1e-5)
