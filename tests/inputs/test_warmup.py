"""Warm-up examples against the attributes of their items."""

import dataclasses
import pickle
from collections import Counter

import pytest
from toy_examples import (
    CATALOG,
    answer_of,
    same,
)
from toy_items import BARE, CORRUPT, NO_IMAGE

from mmsrec_jax.data.records import Catalog
from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.inputs.warmup import WarmupSource, lacking
from mmsrec_jax.prompts import parse_summary
from mmsrec_jax.runtime.errors import UserError


def warmup(prompt_config, tasks, **options):
    options = dict(length=200, seed=0, tasks=tasks, image_attributes=("colour",)) | options
    return WarmupSource(CATALOG, prompt_config, **options)


def test_describe_without_noise_is_the_attributes(trained, prompt_config):
    source = warmup(prompt_config, {"describe": 1})
    for i in range(len(CATALOG)):
        prompt, answer = answer_of(trained, source.example(i, i))
        known = CATALOG[i].attributes
        seen = parse_summary(answer)
        assert answer.endswith("<|im_end|>")
        if i == BARE:
            assert (seen.image, seen.text) == (["clock"], ["clock", "number", "7"])
        else:
            image = [] if i in (NO_IMAGE, CORRUPT) else [known["colour"]]
            assert (seen.image, seen.text) == (image, [known["thing"], known["place"]])
        # stage 1 asks with the same words
        summary = SummarySource(CATALOG, prompt_config, length=200).example(i, i)
        assert trained.decode(summary.tokens) == prompt and summary.index == i
        assert not summary.loss_weights.any()
        assert ("<|vision_start|>" in prompt) == (i not in (NO_IMAGE, CORRUPT))


def test_each_value_of_an_attribute_is_a_keyword(trained, prompt_config):
    films = Catalog.from_items(
        [
            dataclasses.replace(
                CATALOG[0], attributes={"genre": "Drama|War, Epic| |Drama", "year": "1995"}
            )
        ]
    )

    def said(separator, task):
        config = dataclasses.replace(prompt_config, attribute_separator=separator)
        source = WarmupSource(
            films, config, length=200, seed=0, tasks={task: 1}, questions=("genre",)
        )
        return answer_of(trained, source.example(0, 0))[1].removesuffix("<|im_end|>").strip()

    assert said(None, "fuse") == "Drama|War Epic| |Drama, 1995"
    assert said("|", "fuse") == "Drama, War Epic, 1995"  # once each
    assert said("|", "look") == "Drama, War Epic, Drama"
    assert parse_summary(said("|", "describe")).text == ["Drama", "War Epic", "Drama", "1995"]


def test_noise_of_describe(trained, prompt_config):
    source, fillers = warmup(prompt_config, {"describe": 1}, noise=0.25), {"nice", "item", "good"}
    found = Counter()
    for draw in range(600):
        seen = parse_summary(answer_of(trained, source.example(0, draw))[1])
        words = seen.image + seen.text
        found["filler"] += bool(fillers & set(words))
        words = [word for word in words if word not in fillers]
        assert words and set(words) <= {"red", "mug", "home"}
        assert set(seen.image) <= {"red", *fillers}
        found["repeated"] += len(set(words)) < len(words)
        found["left_out"] += 3 - len(set(words))
        found["order"] += [w for w in seen.text if w in ("mug", "home")][:1] == ["home"]
    for name, share in (("filler", 0.25), ("repeated", 0.25), ("left_out", 0.75), ("order", 0.47)):
        assert abs(found[name] / 600 - share) < 0.08, name
    assert same(source.example(0, 5), source.example(0, 5))


def test_vqa_asks_what_can_be_seen(trained, prompt_config):
    source, asked = warmup(prompt_config, {"vqa": 1}), Counter()
    for draw in range(60):
        for i in (0, NO_IMAGE):
            prompt, answer = answer_of(trained, source.example(i, draw))
            name = prompt.split("<|im_end|>")[0].splitlines()[-1]
            assert answer == f" {CATALOG[i].attributes[name]}<|im_end|>"
            asked[i, name] += 1
    assert (NO_IMAGE, "colour") not in asked and len(asked) == 5 and min(asked.values()) > 8
    _, answer = answer_of(trained, source.example(BARE, 0))
    assert answer.startswith("image: clock")  # nothing to ask: described instead


def test_see_describes_the_image_without_the_text(trained, prompt_config):
    source = warmup(prompt_config, {"see": 1})
    prompt, answer = answer_of(trained, source.example(0, 0))
    assert "mug" not in prompt and "<|vision_start|>" in prompt
    assert parse_summary(answer).image == ["red"] and parse_summary(answer).text == []
    # without an image there is nothing to see: described by its text instead
    prompt, answer = answer_of(trained, source.example(NO_IMAGE, NO_IMAGE))
    assert CATALOG[NO_IMAGE].text["title"] in prompt and parse_summary(answer).text


def test_see_on_data_that_does_not_say_what_images_show(trained, prompt_config):
    """Every attribute where the settings name none; without attributes the category, else title."""

    def seen(item, **options):
        source = WarmupSource(
            Catalog.from_items([item]),
            prompt_config,
            length=200,
            seed=0,
            tasks={"see": 1},
            **options,
        )
        prompt, answer = answer_of(trained, source.example(0, 0))
        assert "number" not in prompt and "<|vision_start|>" in prompt
        found = parse_summary(answer)
        assert found.text == []
        return found.image

    item, bare = CATALOG[0], CATALOG[BARE]
    assert seen(item) == ["red", "mug", "home"]
    assert seen(item, image_attributes=("place",)) == ["home"]
    assert seen(bare) == seen(bare, image_attributes=("colour",)) == ["clock"]
    nameless = dataclasses.replace(bare, category=None)
    assert seen(nameless) == ["clock", "number", "7"]
    described = dataclasses.replace(nameless, text={"description": "for home"})
    assert seen(described) == ["for", "home"]


ASKED = ("describe", "see", "vqa", "retell")


def test_what_real_items_lack_is_said():
    def said(coverage, tasks=ASKED, image_attributes=()):
        return lacking(coverage, 10, tasks=tasks, image_attributes=image_attributes)

    movies = {"text title": 10, "attribute genres": 10, "category": 0, "image": 8}
    assert said(movies) == [
        "config.prompts.image_attributes is empty: see asks images for every attribute (genres)",
        "2 of 10 items have no image: their texts are told alone",
    ]
    assert said(movies | {"image": 10}, image_attributes=("genres",)) == []
    (both,) = said(movies | {"image": 10}, tasks=("look", "see", "fuse"))
    assert both.endswith("see and look ask images for every attribute (genres)")
    (asked,) = said({"text title": 10, "category": 9, "image": 10}, tasks=("vqa",))
    assert asked.startswith("no item has an attribute (config.data.attribute_fields): vqa")
    *_, see = said({"text title": 10, "category": 9, "image": 10})
    assert see.endswith("see asks images for their category")
    *_, see = said({"text title": 10, "category": 0, "image": 10})
    assert see.endswith("see asks images for words of their titles")
    with pytest.raises(UserError, match=r"image_attributes=\('colour',\): .* are genres"):
        said(movies, image_attributes=("colour",))
    with pytest.raises(UserError, match="neither attributes nor texts nor a category"):
        said({"category": 0, "image": 10})


def test_retell_writes_the_text_from_keywords(trained, prompt_config):
    prompt, answer = answer_of(trained, warmup(prompt_config, {"retell": 1}).example(0, 0))
    assert "red mug home" in prompt and "<|vision_start|>" not in prompt
    assert answer.removesuffix("<|im_end|>").strip() == title_of(0)


def title_of(i):
    return CATALOG[i].text["title"]


def test_a_source_survives_pickling(prompt_config):
    source = warmup(prompt_config, {"describe": 1, "vqa": 1, "retell": 1})
    before = [source.example(i, i) for i in range(4)]
    again = pickle.loads(pickle.dumps(source))
    assert all(same(again.example(i, i), before[i]) for i in range(4))
