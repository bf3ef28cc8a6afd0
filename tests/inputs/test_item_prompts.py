"""Prompts of items without a question. Those of summaries: test_warmup, which answers them."""

import pytest
import toy_items
from toy_items import CORRUPT, NO_IMAGE

from mmsrec_jax.inputs.item_prompts import ContentSource

CATALOG = toy_items.catalog(12)
IMAGE = "<|image_pad|>"


def source(trained, content, **options):
    prompt_config = toy_items.prompt_config(trained, fields=("title", "description"))
    return ContentSource(CATALOG, prompt_config, **dict(length=40, content=content) | options)


@pytest.mark.parametrize("content", ["text", "image", "item"])
def test_a_prompt_is_the_opening_and_the_item_itself(trained, prompt_config, content):
    for i, example in enumerate(map(source(trained, content).example, range(12), range(12))):
        slots = 0 if content == "text" or i in (NO_IMAGE, CORRUPT) else (1, 2, 4)[i % 3]
        image = f"<|vision_start|>{IMAGE * slots}<|vision_end|>" if slots else ""
        text = "" if content == "image" else " ".join(CATALOG[i].text.values())
        assert trained.decode(example.tokens) == prompt_config.chat.head + image + text
        own = example.tokens[example.loss_weights > 0]
        assert trained.decode(own) == text
        assert example.index == i and len(example.images) == (slots > 0)


def test_a_long_text_loses_its_tail_not_the_image(trained, prompt_config):
    opening = len(prompt_config.chat.ids(prompt_config.chat.head))
    example = source(trained, "item", length=opening + 9).example(2, 2)  # 4 slots, 2 marks
    assert (example.tokens == trained.convert_tokens_to_ids(IMAGE)).sum() == 4
    assert 0 < example.num_targets <= 3 and example.counts["texts_cut"] == 1
