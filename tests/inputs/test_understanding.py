"""Prompts of item understanding: each mode shows exactly what it names."""

import re

import numpy as np
import pytest
import toy_items
from toy_examples import CATALOG, answer_of, same
from toy_items import CORRUPT, NO_IMAGE

from mmsrec_jax.inputs.understanding import MODES, FusionSource, VisualQuestions
from mmsrec_jax.inputs.warmup import WarmupSource
from mmsrec_jax.runtime.errors import UserError

QUESTIONS = ("What colour is it?", "How does it look?")
ANSWERS = (("What colour is it?", "red"), ("How does it look?", "red and tiny"))
PICTURED = np.flatnonzero(CATALOG.has_image)


def fusion(config, mode, answers=lambda item: ANSWERS, length=200):
    return FusionSource(CATALOG, config, length=length, mode=mode, answers=answers)


def shown(trained, example):
    """(slots of images, the prompt without them)."""
    text = trained.decode(example.tokens)
    return text.count("<|image_pad|>"), text


@pytest.mark.parametrize("templates", ["terse", "full"])
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_shows_what_it_names_and_nothing_else(trained, templates, mode):
    config = toy_items.prompt_config(trained, templates)
    source = fusion(config, mode)
    for item in (0, 1, NO_IMAGE, CORRUPT):
        example = source.example(item, item)
        slots, text = shown(trained, example)
        pictured = item not in (NO_IMAGE, CORRUPT)
        title = CATALOG[item].text["title"]
        assert (title in text) == (mode != "image" or not pictured)
        assert (slots > 0) == (len(example.images) == 1) == (mode in ("image", "both") and pictured)
        assert ("red and tiny" in text) == (mode == "both_vqa")
        assert ("How does it look?" in text) == (mode == "both_vqa" and templates == "full")
        assert not example.loss_weights.any() and example.index == item
    prompts = {m: shown(trained, fusion(config, m).example(0, 0))[1] for m in MODES}
    assert len(set(prompts.values())) == len(MODES)


def test_answers_belong_to_the_one_mode_that_asks(trained, prompt_config):
    def unwanted(item):
        raise AssertionError("this mode reads no answers")

    for mode in ("text", "image", "both"):
        fusion(prompt_config, mode, unwanted).example(0, 0)
    without = fusion(prompt_config, "both_vqa", lambda item: ()).example(0, 0)
    assert same(without, fusion(prompt_config, "text").example(0, 0))


def test_a_prompt_without_room_for_its_question_names_the_field(prompt_config):
    questions = {
        "the question 'How does it look?'": VisualQuestions(
            CATALOG, prompt_config, questions=QUESTIONS[1:], items=PICTURED, length=6
        ),
        "the question for a summary": fusion(prompt_config, "both_vqa", length=6),
    }
    for what, source in questions.items():
        message = f"config.understanding.prompt_length=6: {re.escape(what)}.* has .* tokens"
        with pytest.raises(UserError, match=message):
            source.example(0, 0)


def test_a_long_text_is_cut_until_it_fits(trained, prompt_config):
    whole = fusion(prompt_config, "both_vqa").example(0, 0)
    source = fusion(prompt_config, "both_vqa", length=len(whole) - 1)
    short = source.example(0, 0)
    assert len(short) < len(whole) and short.counts["texts_cut"]
    assert "red and tiny" in trained.decode(short.tokens)  # what was seen stays


def test_every_question_is_asked_of_every_image_without_the_text(trained, prompt_config):
    source = VisualQuestions(CATALOG, prompt_config, questions=QUESTIONS, items=PICTURED, length=60)
    assert source.keys == [(i, q) for i in range(24) if i != NO_IMAGE for q in QUESTIONS]
    for row, (item, question) in enumerate(source.keys):
        slots, text = shown(trained, source.example(row, row))
        assert question in text
        if item == CORRUPT:  # a store has none such; its text is the best there is
            assert not slots and CATALOG[item].text["title"] in text
        else:
            assert slots and "number" not in text


def warmup(config, tasks, **options):
    options = dict(
        length=200, seed=0, tasks=tasks, image_attributes=("colour",), questions=QUESTIONS
    ) | options  # fmt: skip
    return WarmupSource(CATALOG, config, **options)


def test_the_warm_up_asks_with_the_same_words(trained, prompt_config):
    """Its examples are prompts of the two sources, answered by the item's attributes."""
    asked = VisualQuestions(CATALOG, prompt_config, questions=QUESTIONS, items=PICTURED, length=200)
    prompts = {shown(trained, asked.example(row, row))[1] for row in range(len(asked))}
    look, fuse = warmup(prompt_config, {"look": 1}), warmup(prompt_config, {"fuse": 1})
    seen = set()
    for draw in range(40):
        item = draw % 4 * 2  # with a picture
        prompt, answer = answer_of(trained, look.example(item, draw))
        assert prompt in prompts and answer == f" {CATALOG[item].attributes['colour']}<|im_end|>"
        colour = CATALOG[item].attributes["colour"]
        answers = [(question, colour) for question in QUESTIONS]
        of_mode = {
            shown(trained, fusion(prompt_config, mode, lambda i, a=answers: a).example(item, 0))[
                1
            ]: mode
            for mode in MODES
        }
        prompt, answer = answer_of(trained, fuse.example(item, draw))
        mode = of_mode[prompt]
        known = CATALOG[item].attributes
        words = {
            "text": [known["thing"], known["place"]],
            "image": [colour],
        }.get(mode, [colour, known["thing"], known["place"]])
        assert answer == f" {', '.join(words)}<|im_end|>"
        seen.add(mode)
    assert seen == set(MODES)
    prompt, answer = answer_of(trained, fuse.example(NO_IMAGE, 1))
    assert prompt == shown(trained, fusion(prompt_config, "text").example(NO_IMAGE, 0))[1]
    assert CATALOG[NO_IMAGE].attributes["colour"] not in answer


def test_wrong_answers_are_another_items_and_the_summary_is_the_items_own(trained, prompt_config):
    """So often as is asked for, in the one mode that shows answers."""
    known = CATALOG[0].attributes
    own = [(question, known["colour"]) for question in QUESTIONS]

    def drawn(share):
        source = warmup(prompt_config, {"fuse": 1}, wrong_answers=share)
        found = [answer_of(trained, source.example(0, draw)) for draw in range(300)]
        assert all(
            known["place"] in said or said.startswith(f" {known['colour']}<") for _, said in found
        )
        return [prompt for prompt, _ in found]

    def prompts(answers):
        return shown(trained, fusion(prompt_config, "both_vqa", lambda i: answers).example(0, 0))[1]

    colours = {item.attributes.get("colour", "") for item in CATALOG} - {"", known["colour"]}
    wrong = {prompts([(question, colour) for question in QUESTIONS]) for colour in colours}
    right, never, always = prompts(own), drawn(0.0), drawn(1.0)
    assert not wrong & set(never) and never.count(right) > 50
    assert wrong <= set(always)
    # A third of the items has the same colour.
    assert 0.4 < always.count(right) / max(1, sum(prompt in wrong for prompt in always)) < 0.8


def test_a_question_is_answered_by_the_attributes_that_it_names(trained, prompt_config):
    def answer(question, **options):
        source = warmup(prompt_config, {"look": 1}, questions=(question,), **options)
        return answer_of(trained, source.example(0, 0))[1].removesuffix("<|im_end|>").strip()

    shows = {"image_attributes": ("colour", "place")}
    assert answer("Which colour has it?", **shows) == "red"
    assert answer("place or colour", **shows) == "red, home"
    assert answer("How does it look?", **shows) == "red, home"
    assert answer("Which thing is it?", **shows) == "red, home"  # the image does not show it
    assert answer("Which thing is it?", image_attributes=()) == "mug"


def test_tasks_that_ask_need_questions(prompt_config):
    for task in ("look", "fuse"):
        with pytest.raises(UserError, match=r"config.understanding.questions is empty"):
            warmup(prompt_config, {task: 1.0, "describe": 1.0}, questions=())
