"""Examples against the chat template, against M-RoPE on whole sequences and against the data."""

import dataclasses
import io
import pickle
import re
from collections import Counter

import numpy as np
import pytest
import toy_items
from PIL import Image
from toy_items import BARE, CORRUPT, NO_IMAGE

from mmsrec_jax.data.records import Catalog
from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.inputs.items import ItemRenderer
from mmsrec_jax.inputs.recommend import CandidateSource, PromptContext, RecommendSource
from mmsrec_jax.inputs.warmup import WarmupSource
from mmsrec_jax.models.patches import mrope_positions
from mmsrec_jax.prompts import parse_summary
from mmsrec_jax.runtime.errors import UserError

HISTORIES = toy_items.histories()
ROWS = toy_items.train_rows(HISTORIES)
TRAIN_END = HISTORIES.lengths - 1
NEIGHBORS = np.random.default_rng(1).integers(-1, 24, (len(ROWS), 4)).astype(np.int32)
KEYWORDS = toy_items.keywords()
CATALOG = toy_items.catalog()


def context(**changes):
    given = dict(keywords=KEYWORDS, neighbors=NEIGHBORS, train_end=TRAIN_END) | changes
    return PromptContext(CATALOG, HISTORIES, **given)


def recommend(prompt_config, tasks, known=None, **options):
    options = dict(length=1000, seed=0, tasks=tasks, negatives=4) | options
    return RecommendSource(known or context(), prompt_config, ROWS, **options)


ARRAYS = ("tokens", "loss_weights", "suffix_ids", "positions", "answer_positions", "labels")


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS)


def candidates_of(trained, example):
    """Item numbers of the candidates, read from their titles in the suffixes."""
    found = []
    for c in range(1, example.suffix_ids.max() + 1):
        text = trained.decode(example.tokens[example.suffix_ids == c])
        found.append(int(re.search(r"number (\d+)", text)[1]))
    return found


@pytest.mark.parametrize("templates", ["terse", "full"])
def test_prefix_and_suffix_are_the_chat_of_one_candidate(trained, templates):
    prompt_config = toy_items.prompt_config(trained, templates, fields=("title", "description"))
    row = 9
    user, position = ROWS[row]
    example = recommend(prompt_config, {"pointwise": 1}).example(row, 0)
    history = [KEYWORDS[i] for i in HISTORIES.of(user)[:position][-5:]]
    similar = [KEYWORDS[i] for i in NEIGHBORS[row] if i >= 0][:3]
    for c, item in enumerate(candidates_of(trained, example), 1):
        slots = 0 if item in (NO_IMAGE, CORRUPT) else (1, 2, 4)[item % 3]
        image = f"<|vision_start|>{'<|image_pad|>' * slots}<|vision_end|>" if slots else ""
        words = CATALOG[item].text
        if templates == "terse":
            question = (
                "likes " + ", ".join(h.replace(",", "") for h in history) + "\n"
                "similar " + ", ".join(s.replace(",", "") for s in similar) + "\n"
                f"{image} {words['title']} {words['description']}"
            )  # fmt: skip
        else:
            question = (
                "A user chose these items, oldest first:\n"
                + "\n".join("- " + h for h in history)
                + "\n\nUsers with a similar history went on to choose:\n"
                + "\n".join("- " + s for s in similar)
                + "\n\nCandidate item:\n"
                + (f"Image: {image}\n" if image else "")
                + f"Text: {words['title']}. {words['description']}\n\n"
                "Will the user choose this item next? Answer yes or no."
            )
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "yes" if example.labels[c - 1] else "no"},
        ]
        whole = trained.apply_chat_template(messages, tokenize=False)
        one = (example.suffix_ids == 0) | (example.suffix_ids == c)
        assert trained.decode(example.tokens[one]) == whole.removesuffix("<|im_end|>")


def test_suffix_positions_are_those_of_the_candidate_alone(trained, prompt_config):
    pad = trained.convert_tokens_to_ids("<|image_pad|>")
    example = recommend(prompt_config, {"pointwise": 1}).example(12, 3)
    images = iter(example.images)
    for c in range(1, 6):
        suffix = example.suffix_ids == c
        one = (example.suffix_ids == 0) | suffix
        grids = [next(images)["grid"]] if pad in example.tokens[suffix] else []
        np.testing.assert_array_equal(
            example.positions[:, one], mrope_positions(example.tokens[one], grids, pad, merge=2)
        )
    assert next(images, None) is None and len(example.images) >= 3


def test_weights_answers_and_labels(trained, prompt_config):
    yes, no = prompt_config.chat.yes_no_ids
    example = recommend(prompt_config, {"pointwise": 1}).example(3, 5)
    target = HISTORIES.of(ROWS[3][0])[ROWS[3][1]]
    labels = [int(item == target) for item in candidates_of(trained, example)]
    assert example.labels.tolist() == labels and sum(labels) == 1
    yes_no_ids = example.answer_positions + 1
    assert example.tokens[yes_no_ids].tolist() == [yes if label else no for label in labels]
    expected = np.zeros(len(example))
    expected[yes_no_ids] = [4 if label else 1 for label in labels]
    np.testing.assert_array_equal(example.loss_weights, expected)
    paper = recommend(prompt_config, {"pointwise": 1}, positive_weight=1).example(3, 5)
    assert paper.loss_weights.max() == 1


def test_negatives(trained, prompt_config):
    source = recommend(prompt_config, {"pointwise": 1})
    drawn, places = Counter(), Counter()
    row = len(ROWS) - 1
    user, position = ROWS[row]
    known = set(HISTORIES.of(user)[: TRAIN_END[user]].tolist())
    for draw in range(400):
        example = source.example(row, draw)
        items = candidates_of(trained, example)
        assert len(set(items)) == 5
        place = int(np.argmax(example.labels))
        places[place] += 1
        drawn.update(items[:place] + items[place + 1 :])
    assert not known & set(drawn)
    # the held-out item is no known interaction: it is drawn as any other
    allowed = set(range(24)) - known
    assert set(drawn) == allowed
    expected = 400 * 4 / len(allowed)
    assert sum((n - expected) ** 2 / expected for n in drawn.values()) < 3 * len(allowed)
    assert set(places) == set(range(5)) and min(places.values()) > 45
    assert same(source.example(row, 17), source.example(row, 17))
    assert not same(source.example(row, 17), source.example(row, 18))
    other = recommend(prompt_config, {"pointwise": 1}, seed=1)
    assert not same(source.example(row, 17), other.example(row, 17))


def test_few_items_for_many_negatives(prompt_config, trained):
    source = recommend(prompt_config, {"pointwise": 1}, negatives=15)
    row = len(ROWS) - 1
    assert len(set(candidates_of(trained, source.example(row, 0)))) == 16
    with pytest.raises(UserError, match="u5: 16 items"):
        recommend(prompt_config, {"pointwise": 1}, negatives=17).example(row, 0)


def test_scoring_rows_are_training_rows(trained, prompt_config):
    train = recommend(prompt_config, {"pointwise": 1}, positive_weight=1)
    examples = [train.example(row, row) for row in range(len(ROWS))]
    candidates = np.array([candidates_of(trained, example) for example in examples], np.int32)
    scoring = CandidateSource(context(), prompt_config, ROWS, candidates, length=1000)
    assert all(same(scoring[row], example) for row, example in enumerate(examples))
    candidates[4, 2] = -1
    example = CandidateSource(context(), prompt_config, ROWS, candidates, length=1000)[4]
    assert example.answer_positions[2] == -1 and (example.suffix_ids != 3).all()
    np.testing.assert_array_equal(
        example.tokens[example.suffix_ids == 4], examples[4].tokens[examples[4].suffix_ids == 4]
    )


def test_a_row_at_the_end_of_a_history_has_no_target(prompt_config):
    rows = np.array([[2, len(HISTORIES.of(2))]])
    known = context(neighbors=None)
    example = CandidateSource(known, prompt_config, rows, np.arange(4)[None], length=1000)[0]
    assert example.labels.tolist() == [0] * 4
    assert f"k{HISTORIES.of(2)[-1]}" in prompt_config_text(prompt_config, example)


def prompt_config_text(prompt_config, example):
    return prompt_config.chat._backend.decode(example.tokens.tolist(), skip_special_tokens=False)


def test_missing_and_corrupt_images_become_text_and_are_counted(trained, prompt_config):
    rows, wanted = ROWS[:1], np.array([[NO_IMAGE, 0, CORRUPT, 2]])
    known = context(neighbors=None)
    source = CandidateSource(known, prompt_config, rows, wanted, length=1000)
    for _ in range(2):  # the second time from the cache
        example = source[0]
        assert example.counts["images_missing"] == 2 and len(example.images) == 2
    assert candidates_of(trained, example) == wanted[0].tolist()
    blind = toy_items.prompt_config(trained, processor=None)
    example = CandidateSource(known, blind, rows, wanted, length=1000)[0]
    assert example.images == () and not example.counts.get("images_missing")
    assert "<|vision_start|>" not in trained.decode(example.tokens)


def file_of(image, format, **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def test_odd_images_are_used_and_a_thread_of_pixels_is_counted(prompt_config):
    """1 x 4000 pixels fit no grid: such an item is shown by its text."""
    red = Image.new("RGB", (16, 16), "red")
    wide = Image.fromarray(np.full((16, 16), 40000, np.uint16))
    files = [
        file_of(red.convert("CMYK"), "JPEG"),
        file_of(red.convert("RGBA"), "PNG"),
        file_of(red, "GIF", save_all=True, append_images=[Image.new("RGB", (16, 16), "blue")]),
        file_of(wide, "PNG"),
        file_of(Image.new("RGB", (4000, 1)), "PNG"),
    ]
    made = [
        dataclasses.replace(item, image=image)
        for item, image in zip(toy_items.items(len(files)), files, strict=True)
    ]
    source, counts = ItemRenderer(Catalog.from_items(made), prompt_config), Counter()
    found = [source.image(i, counts) for i in range(len(files))]
    assert [image is None for image in found] == [False] * 4 + [True]
    assert counts["images_missing"] == 1


def test_truncation_order(trained, prompt_config):
    row = int(np.argmax(ROWS[:, 1]))
    user, position = ROWS[row]
    neighbors = np.tile(np.arange(4, dtype=np.int32), (len(ROWS), 1))
    known = context(neighbors=neighbors)

    def at(length):
        candidates = np.tile([0, 1], (len(ROWS), 1))
        return CandidateSource(known, prompt_config, ROWS, candidates, length=length).example(
            row, 0
        )

    whole = at(1000)
    assert not {"history_left_out", "similar_left_out"} & set(whole.counts)
    past = [KEYWORDS[i].replace(",", "") for i in HISTORIES.of(user)[:position][-5:]]
    similar = [KEYWORDS[i].replace(",", "") for i in range(3)]
    states = [(past[i:], similar) for i in range(5)]
    states += [(past[4:], similar[:i]) for i in (2, 1, 0)] + [([], [])]
    seen, cut = [], False
    for length in range(len(whole), 5, -1):
        example = at(length)
        if len(example) > length:  # nothing is left to cut: the batch maker reports it
            assert example.counts["texts_cut"] == 2
            break
        if example.counts["texts_cut"]:
            cut = True
            continue
        assert not cut
        prefix = trained.decode(example.tokens[example.suffix_ids == 0])
        lines = prefix.removeprefix("<|im_start|>").splitlines()
        state = tuple(
            next((x.removeprefix(name + " ").split(", ") for x in lines if x.startswith(name)), [])
            for name in ("likes", "similar")
        )
        if not seen or seen[-1] != state:
            seen.append(state)
        assert example.counts["history_left_out"] == 5 - len(state[0])
        assert example.counts["similar_left_out"] == 3 - len(state[1])
    else:
        pytest.fail("the shortest length still fits")
    assert seen == states and cut


def test_long_texts_lose_their_tail_and_are_counted(trained):
    prompt_config = toy_items.prompt_config(trained, fields=("title", "description"), text_tokens=3)
    source = CandidateSource(
        context(neighbors=None), prompt_config, ROWS[:1], np.array([[0]]), length=1000
    )
    example = source[0]
    assert example.counts["texts_cut"] == 1
    assert " mug number" in trained.decode(example.tokens)
    assert "for" not in trained.decode(example.tokens)


def answer_of(trained, example):
    """Prompt and answer as text; everything with weight is the end of the example."""
    weighted = np.flatnonzero(example.loss_weights)
    assert weighted.tolist() == list(range(weighted[0], len(example)))
    assert set(example.loss_weights[weighted]) == {1.0}
    return trained.decode(example.tokens[: weighted[0]]), trained.decode(example.tokens[weighted])


def test_other_tasks(trained, prompt_config):
    row = 7
    target = int(HISTORIES.of(ROWS[row][0])[ROWS[row][1]])
    title, words = CATALOG[target].text["title"], KEYWORDS[target].replace(",", "")
    letters = set()
    for draw in range(40):
        prompt, answer = answer_of(
            trained, recommend(prompt_config, {"rank": 1}).example(row, draw)
        )
        letter = answer.removesuffix("<|im_end|>")
        options = dict(re.findall(r"^([A-Z]) (.*)$", prompt, re.MULTILINE))
        assert options[letter] == title and len(options) == 5
        letters.add(letter)
    assert letters == set("ABCDE")
    prompt, answer = answer_of(
        trained, recommend(prompt_config, {"next_keywords": 1}).example(row, 0)
    )
    assert answer == f" {words}<|im_end|>" and "likes" in prompt
    assert f"likes {words}" not in prompt
    both = set()
    for draw in range(20):
        prompt, answer = answer_of(
            trained, recommend(prompt_config, {"align": 1}).example(row, draw)
        )
        to_words = answer == f" {words}<|im_end|>"
        assert to_words or answer == f" {title}<|im_end|>"
        assert (title if to_words else words) in prompt
        assert "likes" not in prompt
        both.add(to_words)
    assert both == {True, False}


def test_shares(trained, prompt_config):
    source = recommend(prompt_config, {"pointwise": 3, "next_keywords": 1, "rank": 0})
    kinds = Counter(source.example(0, draw).suffix_ids.max() > 0 for draw in range(400))
    assert 0.68 < kinds[True] / 400 < 0.82
    wrong = (({"ranking": 1}, "ranking"), ({}, "positive"), ({"rank": -1}, "positive"))
    for tasks, message in wrong:
        with pytest.raises(UserError, match=message):
            recommend(prompt_config, tasks)


def test_ablations(trained, prompt_config):
    known = context(keywords=None, neighbors=None)
    raw = recommend(prompt_config, {"pointwise": 1, "align": 5}, known)
    for draw in range(10):  # nothing to align without keywords
        example = raw.example(5, draw)
        text = trained.decode(example.tokens)
        assert example.suffix_ids.max() and "similar" not in text and " k" not in text
    item = HISTORIES.of(ROWS[5][0])[ROWS[5][1] - 1]
    assert CATALOG[int(item)].text["title"] in text
    with pytest.raises(UserError, match="neighbors"):
        recommend(prompt_config, {"pointwise": 1}, context(neighbors=NEIGHBORS[1:]))
    with pytest.raises(UserError, match="keyword"):
        recommend(prompt_config, {"pointwise": 1}, context(keywords=KEYWORDS[1:]))


def warmup(prompt_config, tasks, **options):
    options = dict(length=200, seed=0, tasks=tasks, image_attributes=("colour",)) | options
    return WarmupSource(CATALOG, prompt_config, **options)


def test_describe_without_noise_is_the_attributes(trained, prompt_config):
    source = warmup(prompt_config, {"describe": 1})
    for i in range(len(CATALOG)):
        prompt, answer = answer_of(trained, source[i])
        known = CATALOG[i].attributes
        seen = parse_summary(answer)
        assert answer.endswith("<|im_end|>")
        if i == BARE:
            assert (seen.image, seen.text) == (["clock"], ["clock", "number", "7"])
        else:
            image = [] if i in (NO_IMAGE, CORRUPT) else [known["colour"]]
            assert (seen.image, seen.text) == (image, [known["thing"], known["place"]])
        # stage 1 asks with the same words
        summary = SummarySource(CATALOG, prompt_config, length=200)[i]
        assert trained.decode(summary.tokens) == prompt and summary.index == i
        assert not summary.loss_weights.any()
        assert ("<|vision_start|>" in prompt) == (i not in (NO_IMAGE, CORRUPT))


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
    prompt, answer = answer_of(trained, source[0])
    assert "mug" not in prompt and "<|vision_start|>" in prompt
    assert parse_summary(answer).image == ["red"] and parse_summary(answer).text == []
    # without an image there is nothing to see: described by its text instead
    prompt, answer = answer_of(trained, source[NO_IMAGE])
    assert CATALOG[NO_IMAGE].text["title"] in prompt and parse_summary(answer).text


def test_retell_writes_the_text_from_keywords(trained, prompt_config):
    prompt, answer = answer_of(trained, warmup(prompt_config, {"retell": 1})[0])
    assert "red mug home" in prompt and "<|vision_start|>" not in prompt
    assert answer.removesuffix("<|im_end|>").strip() == title_of(0)


def title_of(i):
    return CATALOG[i].text["title"]


def test_match_lists_items_like_the_one_that_fits(trained, prompt_config):
    source = warmup(prompt_config, {"match": 1}, negatives=4)
    own = CATALOG[0].attributes
    name_of = {value: name for item in CATALOG for name, value in item.attributes.items()}
    shared, expected, sizes = 0.0, 0.0, Counter()
    for draw in range(80):
        example = source.example(0, draw)
        candidates = candidates_of(trained, example)
        assert candidates[example.labels.argmax()] == 0 and len(candidates) == 5
        assert example.labels.sum() == 1
        prefix = trained.decode(example.tokens[example.suffix_ids == 0])
        lines = re.split(r"\n|,", prefix.split("likes")[1].replace("similar", ","))
        listed = [line.split() for line in lines if line.strip()]
        names = {name_of[word] for words in listed for word in words}
        sizes[len(listed)] += 1
        for item in set(candidates) - {0}:
            attributes = CATALOG[item].attributes
            assert any(attributes.get(name) != own[name] for name in names)
        shared += np.mean([own[name_of[w]] == w for words in listed for w in words])
        expected += np.mean(
            [item.attributes.get(name) == own[name] for item in CATALOG for name in names]
        )
    assert set(sizes) == {1, 2, 3, 4, 5, 6}
    assert shared > 1.5 * expected


def test_candidates_show_their_keywords_where_the_config_says_so(trained, prompt_config):
    row, draw = 9, 0
    bare = recommend(prompt_config, {"pointwise": 1}).example(row, draw)
    shown = toy_items.prompt_config(trained, candidate_keywords=True)
    full = recommend(shown, {"pointwise": 1}).example(row, draw)
    for c, item in enumerate(candidates_of(trained, bare), 1):
        before, after = (trained.decode(e.tokens[e.suffix_ids == c]) for e in (bare, full))
        words = " " + KEYWORDS[item].replace(",", "")
        title = CATALOG[item].text["title"]
        assert after == before.replace(title, title + words)
    assert len(recommend(shown, {"pointwise": 1}, length=60).example(row, draw)) <= 60
    plain = context(keywords=None)
    assert same(
        recommend(shown, {"pointwise": 1}, plain).example(row, draw),
        recommend(prompt_config, {"pointwise": 1}, plain).example(row, draw),
    )


def test_sources_survive_pickling(prompt_config):
    for source in (
        recommend(prompt_config, {"pointwise": 1, "rank": 1}),
        warmup(prompt_config, {"describe": 1, "vqa": 1}),
    ):
        before = [source[i] for i in range(4)]
        again = pickle.loads(pickle.dumps(source))
        assert all(same(again[i], before[i]) for i in range(4))
