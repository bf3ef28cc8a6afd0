"""Rewards of finished summaries, beside what the summaries and the weights say."""

import jax
import pytest
import toy_items
import toy_model

from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.prompts import parse_summary
from mmsrec_jax.rl import item_rewards
from mmsrec_jax.rl.settings import GRPOSettings
from mmsrec_jax.runtime import sharding

WEIGHTS = {"length": 0.5, "format": 2.0, "image_contrastive": 3.0}
WRITTEN = {
    9: "image: red\ntext: lamp, home",
    2: "image: red, red\ntext: bag",  # a word twice: a rule of three is broken
    toy_items.NO_IMAGE: "text: clock",
    0: "",
    11: "image: blue, big\ntext: clock, work",
}


def test_they_are_those_of_the_items_own_words(tmp_path):
    tokenizer = toy_items.make_tokenizer(tmp_path)
    prompt_config = toy_items.prompt_config(tokenizer, text_tokens=12)
    source = SummarySource(toy_items.catalog(), prompt_config, length=48)
    settings = GRPOSettings(
        batch_size=4, num_generations=2, micro_batch=4, patches=16, max_new_tokens=8,
        image_tokens=6, distractors=2, weights=WEIGHTS,
    )  # fmt: skip
    found = item_rewards.of_items(
        settings,
        toy_model.make(tokenizer),
        source,
        list(WRITTEN),
        [parse_summary(text) for text in WRITTEN.values()],
        mesh=sharding.make_mesh(devices=jax.devices()[:1]),
    )
    assert list(found) == list(WRITTEN)  # five items in batches of four
    assert [of["length"] for of in found.values()] == [-3, -3, -1, 0, -4]
    kept = [1, 2 / 3, 1, 0, 1]
    assert [of["format"] for of in found.values()] == pytest.approx(kept)
    for item, of in found.items():
        assert set(of) == {*WEIGHTS, "total"}
        assert of["total"] == pytest.approx(sum(w * of[name] for name, w in WEIGHTS.items()))
        assert (of["image_contrastive"] == 0) == (item == toy_items.NO_IMAGE)


def test_numbers_that_are_not_finite_are_counted_and_left_out(caplog):
    found = {3: {"length": 1.0, "total": float("nan")}, 5: {"length": 2.0, "total": float("inf")}}
    assert item_rewards.finite(found) == {3: {"length": 1.0}, 5: {"length": 2.0}}
    assert "reward total of 2 in 2 items is not finite" in caplog.text
