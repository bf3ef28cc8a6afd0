"""The words that keyword rows compare are those that a prompt's lists show."""

import dataclasses

import pytest
import toy_items

from mmsrec_jax.inputs.recommend import PromptContext
from mmsrec_jax.methods import keyword_rows


@pytest.fixture(scope="module")
def prompt_config(tmp_path_factory):
    return toy_items.prompt_config(toy_items.make_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def test_keywords_count_as_a_whole_and_texts_word_by_word(prompt_config):
    catalog, written = toy_items.catalog(), toy_items.keywords()
    written[4], written[5] = "Dark Red, , mug,dark red", " "
    context = PromptContext(catalog, toy_items.histories(), written)
    found = keyword_rows.words(context, prompt_config)
    assert found[0] == {"red", "mug", "k0"}
    assert found[4] == {"dark red", "mug"}
    assert found[5] == {"lamp", "number", "5"}  # no keywords: its title, as in the prompt


def test_without_summaries_the_text_of_lists_counts(prompt_config):
    context = PromptContext(toy_items.catalog(), toy_items.histories())
    both = dataclasses.replace(prompt_config, list_fields=("title", "description"))
    assert keyword_rows.words(context, prompt_config)[2] == {"bag", "number", "2"}
    assert keyword_rows.words(context, both)[2] == {"bag", "number", "2", "for", "home"}
    short = dataclasses.replace(prompt_config, text_tokens=1)
    assert keyword_rows.words(context, short)[2] == {"bag"}
