"""Prompts of items without a question. Those of summaries: test_warmup, which answers them."""

import numpy as np
import pytest
import toy_items
from toy_items import CORRUPT, NO_IMAGE

from mmsrec_jax.inputs.item_prompts import ContentSource, TextSource
from mmsrec_jax.runtime.errors import UserError

CATALOG = toy_items.catalog(12)
IMAGE = "<|image_pad|>"


def source(trained, content, **options):
    prompt_config = toy_items.prompt_config(trained, fields=("title", "description"))
    return ContentSource(CATALOG, prompt_config, **dict(length=40, content=content) | options)


@pytest.mark.parametrize("content", ["image", "item"])
def test_a_prompt_is_the_opening_and_the_item_itself(trained, prompt_config, content):
    for i, example in enumerate(map(source(trained, content).example, range(12), range(12))):
        slots = 0 if i in (NO_IMAGE, CORRUPT) else (1, 2, 4)[i % 3]
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


@pytest.mark.parametrize("length", [40, 60, 400])
def test_a_row_of_texts_is_the_opening_and_consecutive_items(trained, length):
    prompt_config = toy_items.prompt_config(trained, fields=("title", "description"))
    source, head = TextSource(CATALOG, prompt_config, length=length), prompt_config.chat.head
    opening = len(prompt_config.chat.ids(head))
    assert source.first[0] == 0 and source.first[-1] == 12
    assert source.most == np.diff(source.first).max()
    for row in range(len(source)):
        example = source.example(row, 0)
        assert len(example) <= length and example.index == row
        assert trained.decode(example.tokens[example.suffix_ids == 0]) == head
        np.testing.assert_array_equal(example.loss_weights, example.suffix_ids > 0)
        for number, item in enumerate(range(*source.first[row : row + 2]), start=1):
            own = example.suffix_ids == number
            assert trained.decode(example.tokens[own]) == " ".join(CATALOG[item].text.values())
            places = opening + np.arange(own.sum())
            np.testing.assert_array_equal(example.positions[:, own], [places] * 3)
        if row + 1 < len(source):  # the next item had no room
            after = source.example(row + 1, 0)
            assert len(example) + (after.suffix_ids == 1).sum() > length


def test_a_text_that_fills_more_than_a_row_loses_its_tail(trained):
    prompt_config = toy_items.prompt_config(trained, fields=("title", "description"))
    opening = len(prompt_config.chat.ids(prompt_config.chat.head))
    source = TextSource(CATALOG, prompt_config, length=opening + 3)
    example = source.example(0, 0)
    assert opening < len(example) <= opening + 3 and example.counts["texts_cut"] == 1
    with pytest.raises(UserError, match="raise config.features.length"):
        TextSource(CATALOG, prompt_config, length=opening)


def test_features_are_of_the_text_that_candidates_show(trained):
    """Title and keywords where candidates show those, the text fields otherwise."""
    words = toy_items.keywords(12)
    words[4] = ""
    for shown in (True, False):
        config = toy_items.prompt_config(
            trained, fields=("title", "description"), candidate_keywords=shown
        )
        rows = TextSource(CATALOG, config, length=400, keywords=words)
        alone = ContentSource(CATALOG, config, length=60, content="item", keywords=words)
        texts = rows.example(0, 0)
        for i in range(rows.first[1]):
            fields = CATALOG[i].text
            wanted = " ".join(fields.values())
            if shown and words[i]:
                wanted = f"{fields['title']} {words[i].replace(',', '')}"
            assert trained.decode(texts.tokens[texts.suffix_ids == i + 1]) == wanted
            example = alone.example(i, 0)
            assert trained.decode(example.tokens[example.loss_weights > 0]) == wanted
