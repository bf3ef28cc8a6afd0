"""The summary's form is read back exactly, and whatever a model writes is read without a fall."""

import numpy as np
import pytest

from mmsrec_jax.prompts import Summary, format_summary, parse_summary, phrases


@pytest.mark.parametrize(
    "image, text", [(["red", "striped mug"], ["oak"]), ([], ["oak", "a b"]), (["x"], [])]
)
def test_round_trip(image, text):
    assert parse_summary(format_summary(image, text)) == Summary(image, text, True)
    assert parse_summary(format_summary(image, text) + "<|im_end|>\nimage: more").image == image


def test_form_is_the_one_that_prompts_ask_for():
    assert format_summary(["a", "b"], ["c"]) == "image: a, b\ntext: c"
    assert format_summary([], ["c"]) == "image:\ntext: c"
    assert parse_summary("text: c, d") == Summary([], ["c", "d"], True)  # as without an image


@pytest.mark.parametrize(
    "written, image, text",
    [
        ("", [], []),
        ("red, oak", [], ["red", "oak"]),
        ("**Image:** red; blue.\n- Text : 'oak'", ["red", "blue"], ["oak"]),
        ("text: oak\nimage: red", ["red"], ["oak"]),
        ("image: red, Red\ntext: oak", ["red", "Red"], ["oak"]),
        ("image: red\nimage: blue\ntext: oak", ["red", "blue"], ["oak"]),
        ("Sure!\nimage: red\ntext: oak", ["red"], ["Sure", "oak"]),
        ("image: red\nround\ntext: oak", ["red", "round"], ["oak"]),
        ("image: , ,\ntext: ...", [], []),
        ("image: red, text: oak", ["red", "text: oak"], []),
        ("images of text: many", [], ["images of text: many"]),
    ],
)
def test_everything_else_is_read_and_not_well_formed(written, image, text):
    summary = parse_summary(written)
    assert (summary.image, summary.text) == (image, text)
    # bullets and bold headers are forgiven, the rest is not
    assert summary.well_formed == written.startswith("**")


def test_keywords_are_each_once_in_order():
    assert Summary(["red", "Oak"], ["oak", "mug", "red"]).keywords == ["red", "Oak", "mug"]


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("red, striped,  oak", ["red", "striped", "oak"]),
        ("- red mug\n- of oak; for 1.5 liters.", ["red mug", "of oak", "for 1.5 liters"]),
        ("A red mug. A mug! Red, RED", ["A red mug", "A mug", "Red"]),
        ("...,\n;", []),
    ],
)
def test_a_description_is_cut_into_phrases(written, found):
    assert phrases(written) == found


def test_random_bytes():
    rng = np.random.default_rng(0)
    alphabet = list("imagetx:, \n;<|>*-é\ue001\x00")
    for _ in range(2000):
        written = "".join(rng.choice(alphabet, rng.integers(0, 40)))
        summary = parse_summary(written)
        for word in summary.image + summary.text:
            assert word and not set(word) & set(",;\n")
        for phrase in phrases(written):
            assert phrase == phrase.strip() and not set(phrase) & set(",;\n")
