"""The order in which prompts list an item's keywords."""

from mmsrec_jax.methods.mmsrarec import joined_keywords


def test_text_first_then_image_each_from_frequent_to_rare_and_once():
    counts = {"garden": 9, "oak": 5, "lamp": 2, "red": 7, "plain": 8}
    found = joined_keywords(["red", "plain", "oak"], ["lamp", "oak", "garden"], counts)
    assert found == "garden, oak, lamp, plain, red"


def test_unknown_words_stand_last_in_alphabetical_order():
    assert joined_keywords([], ["zinc", "brass", "oak"], {"oak": 1}) == "oak, brass, zinc"
