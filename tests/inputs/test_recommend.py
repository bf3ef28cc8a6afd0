"""Recommendation examples against the chat template, M-RoPE on whole sequences and the data."""

import pickle
import re
from collections import Counter

import numpy as np
import pytest
import toy_items
from toy_examples import (
    CATALOG,
    HISTORIES,
    KEYWORDS,
    NEIGHBORS,
    ROWS,
    TRAIN_END,
    answer_of,
    candidates_of,
    context,
    recommend,
    same,
)
from toy_items import CORRUPT, NO_IMAGE

from mmsrec_jax.inputs.negatives import check_negatives
from mmsrec_jax.inputs.recommend import (
    CandidateSource,
    NextKeywordsSource,
    keywords_answers,
)
from mmsrec_jax.models.patches import mrope_positions
from mmsrec_jax.prompts import Section
from mmsrec_jax.runtime.errors import UserError


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
    with pytest.raises(UserError, match="negatives=17: 16 items .* user .u5."):
        recommend(prompt_config, {"pointwise": 1}, negatives=17).example(row, 0)


def test_scoring_rows_are_training_rows(trained, prompt_config):
    train = recommend(prompt_config, {"pointwise": 1}, positive_weight=1)
    examples = [train.example(row, row) for row in range(len(ROWS))]
    candidates = np.array([candidates_of(trained, example) for example in examples], np.int32)
    scoring = CandidateSource(context(), prompt_config, ROWS, candidates, length=1000)
    assert all(same(scoring.example(row, row), example) for row, example in enumerate(examples))
    candidates[4, 2] = -1
    example = CandidateSource(context(), prompt_config, ROWS, candidates, length=1000).example(4, 4)
    assert example.answer_positions[2] == -1 and (example.suffix_ids != 3).all()
    np.testing.assert_array_equal(
        example.tokens[example.suffix_ids == 4], examples[4].tokens[examples[4].suffix_ids == 4]
    )


def test_a_row_at_the_end_of_a_history_has_no_target(prompt_config):
    rows = np.array([[2, len(HISTORIES.of(2))]])
    known = context(neighbors=None)
    example = CandidateSource(known, prompt_config, rows, np.arange(4)[None], length=1000).example(
        0, 0
    )
    assert example.labels.tolist() == [0] * 4
    assert f"k{HISTORIES.of(2)[-1]}" in prompt_config_text(prompt_config, example)


def prompt_config_text(prompt_config, example):
    return prompt_config.chat._backend.decode(example.tokens.tolist(), skip_special_tokens=False)


def test_missing_and_corrupt_images_become_text_and_are_counted(trained, prompt_config):
    rows, wanted = ROWS[:1], np.array([[NO_IMAGE, 0, CORRUPT, 2]])
    known = context(neighbors=None)
    source = CandidateSource(known, prompt_config, rows, wanted, length=1000)
    for _ in range(2):  # the second time from the cache
        example = source.example(0, 0)
        assert example.counts["images_missing"] == 2 and len(example.images) == 2
    assert candidates_of(trained, example) == wanted[0].tolist()
    blind = toy_items.prompt_config(trained, processor=None)
    example = CandidateSource(known, blind, rows, wanted, length=1000).example(0, 0)
    assert example.images == () and not example.counts.get("images_missing")
    assert "<|vision_start|>" not in trained.decode(example.tokens)


def test_truncation_order(trained, prompt_config):
    row = int(np.argmax(ROWS[:, 1]))
    user, position = ROWS[row]
    past = HISTORIES.of(user)[:position]
    unknown = [item for item in range(len(CATALOG)) if item not in past]
    neighbors = [unknown[0], past[0], unknown[1], past[-1], *unknown[2:4]]
    known = context(neighbors=np.tile(np.array(neighbors, np.int32), (len(ROWS), 1)))

    def at(length):
        candidates = np.tile([0, 1], (len(ROWS), 1))
        return CandidateSource(known, prompt_config, ROWS, candidates, length=length).example(
            row, 0
        )

    whole = at(1000)
    left_out = {"history_left_out", "similar_left_out", "lists_with_shortened_texts"}
    assert not left_out & set(whole.counts)
    past = [KEYWORDS[i].replace(",", "") for i in past[-5:]]
    similar = [KEYWORDS[i].replace(",", "") for i in unknown[:3]]  # what the user had is no news
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
            assert example.counts["lists_with_shortened_texts"] == 1
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
    example = source.example(0, 0)
    assert example.counts["texts_cut"] == 1
    assert " mug number" in trained.decode(example.tokens)
    assert "for" not in trained.decode(example.tokens)


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


def test_shares(trained, prompt_config, monkeypatch):
    source = recommend(prompt_config, {"pointwise": 3, "next_keywords": 1, "rank": 0})
    kinds = Counter(source.example(0, draw).suffix_ids.max() > 0 for draw in range(400))
    assert 0.68 < kinds[True] / 400 < 0.82
    mixed = {"pointwise": 4, "rank": 3, "next_keywords": 2, "align": 1}
    source = recommend(prompt_config, mixed)
    for method in ("pointwise", "_rank", "_next_keywords", "_align"):
        monkeypatch.setattr(source, method, lambda *_, m=method, **__: m.lstrip("_"))
    found = Counter(source.example(draw % len(ROWS), draw) for draw in range(4000))
    for task, share in mixed.items():
        assert abs(found[task] / 4000 - share / 10) < 0.03, task  # four standard deviations
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
    source = recommend(prompt_config, {"pointwise": 1, "rank": 1})
    before = [source.example(i, i) for i in range(4)]
    again = pickle.loads(pickle.dumps(source))
    assert all(same(again.example(i, i), before[i]) for i in range(4))


class WithProfile(CandidateSource):
    """What a method adds: a section of its own, with its own rule."""

    def sections(self, row):
        terms = Section(
            "profile", "profile{items}\n", " {words}", ",", ("mug", "red", "home", "bag"),
            drop=lambda entries: len(entries) // 2, keep=2, priority=-1,
        )  # fmt: skip
        return [*super().sections(row), terms]


def test_a_section_with_its_own_rule_is_added_without_touching_the_fit(trained, prompt_config):
    """The middle entry goes first, before the history does, down to two; at last these go too."""
    row = int(np.argmax(ROWS[:, 1]))
    lists = np.tile([0, 1], (len(ROWS), 1))

    def at(length):
        known = context(neighbors=None)
        return WithProfile(known, prompt_config, ROWS, lists, length=length).example(row, 0)

    whole = at(1000)
    states = {}
    for length in range(len(whole), 5, -1):
        example = at(length)
        if example.counts.get("texts_cut"):
            break
        text = trained.decode(example.tokens[example.suffix_ids == 0])
        profile = re.search(r"^profile(.*)$", text, re.MULTILINE)
        words = tuple(profile[1].strip().split(", ")) if profile else ()
        left_out = example.counts.get("profile_left_out", 0)
        assert left_out == 4 - len(words)
        states[words, example.counts.get("history_left_out", 0)] = None
    assert list(states) == [
        (("mug", "red", "home", "bag"), 0),
        (("mug", "red", "bag"), 0),
        *((("mug", "bag"), n) for n in range(5)),
        (("mug",), 4),
        ((), 4),
        ((), 5),
    ]


@pytest.mark.parametrize("templates", ["terse", "full"])
@pytest.mark.parametrize("keywords", [KEYWORDS, None])
def test_a_question_for_keywords_is_that_of_training_and_so_are_answers(
    trained, templates, keywords
):
    prompt_config, known = toy_items.prompt_config(trained, templates), context(keywords=keywords)
    answers = keywords_answers(known, prompt_config)
    longest = max(map(len, answers))
    source = NextKeywordsSource(known, prompt_config, ROWS, length=1000, answer=longest)
    training = recommend(prompt_config, {"next_keywords": 1}, known)
    assert len(source) == len(ROWS) and source.patch_width == 0
    for row, (user, position) in enumerate(ROWS):
        example, whole = source.example(row, 0), training.example(row, 0)
        answer = answers[HISTORIES.of(user)[position]]
        assert whole.tokens.tolist() == [*example.tokens, *answer]
        np.testing.assert_array_equal(whole.positions[:, : len(example)], example.positions)
        assert np.flatnonzero(whole.loss_weights).tolist() == list(
            range(len(example), len(example) + len(answer))
        )


def test_a_question_for_keywords_leaves_room_for_any_answer_and_reads_no_target(trained):
    prompt_config = toy_items.prompt_config(trained, "full")
    longest = max(map(len, keywords_answers(context(), prompt_config)))
    free = NextKeywordsSource(context(), prompt_config, ROWS, length=1000, answer=longest)
    length = max(len(free.example(row, 0)) for row in range(len(ROWS)))
    tight = NextKeywordsSource(context(), prompt_config, ROWS, length=length, answer=longest)
    lengths = [len(tight.example(row, 0)) for row in range(len(ROWS))]
    assert max(lengths) <= tight.length == length - longest
    assert sum(tight.example(row, 0).counts.get("history_left_out", 0) for row in range(len(ROWS)))
    end = np.stack([np.arange(len(HISTORIES)), HISTORIES.lengths], 1)
    past = NextKeywordsSource(
        context(neighbors=None), prompt_config, end, length=1000, answer=longest
    )
    latest = KEYWORDS[HISTORIES.of(2)[-1]]
    assert f"- {latest}" in trained.decode(past.example(2, 0).tokens)
    with pytest.raises(UserError, match="raise config.sft.length"):
        NextKeywordsSource(context(), prompt_config, ROWS, length=longest, answer=longest)


def pictures_of(item):
    """How an item's image stands in text: one pad a slot; nothing where it has none."""
    slots = 0 if item in (NO_IMAGE, CORRUPT) else (1, 2, 4)[item % 3]
    return f"<|vision_start|>{'<|image_pad|>' * slots}<|vision_end|> " if slots else ""


@pytest.mark.parametrize("templates", ["terse", "full"])
def test_the_history_of_plain_sft_shows_titles_and_images(trained, templates):
    prompt_config = toy_items.prompt_config(trained, templates)
    plain = context(keywords=None, neighbors=None, history_patches=1000)
    for row in range(len(ROWS)):
        past = HISTORIES.of(ROWS[row][0])[: ROWS[row][1]][-5:]
        example = recommend(prompt_config, {"pointwise": 1}, plain).example(row, 0)
        prefix = trained.decode(example.tokens[example.suffix_ids == 0])
        lines = [pictures_of(i) + CATALOG[int(i)].text["title"] for i in past]
        assert (", " if templates == "terse" else "\n- ").join(lines) in prefix
        shown = [i for i in [*past, *candidates_of(trained, example)] if pictures_of(i)]
        pixels = [prompt_config.processor.patchify(CATALOG.image(int(i))) for i in shown]
        assert len(example.images) == len(shown)
        for image, wanted in zip(example.images, pixels, strict=True):
            np.testing.assert_array_equal(image["patches"], wanted["patches"])
        bare = sum(1 for i in past if not pictures_of(i))
        assert example.counts["images_missing"] == bare + sum(
            1 for i in candidates_of(trained, example) if not pictures_of(i)
        )
        pad = trained.convert_tokens_to_ids("<|image_pad|>")
        one = example.suffix_ids <= 1
        grids = [image["grid"] for image in example.images]
        count = int(sum(1 for i in past if pictures_of(i)))
        grids = grids[: count + bool(pictures_of(candidates_of(trained, example)[0]))]
        np.testing.assert_array_equal(
            example.positions[:, one], mrope_positions(example.tokens[one], grids, pad, merge=2)
        )


def test_images_of_the_history_have_their_own_room_and_leave_with_their_items(
    trained, prompt_config
):
    """The latest item's image stays longest; an item that is left out takes its image along."""
    row = int(np.argmax(ROWS[:, 1]))
    past = HISTORIES.of(ROWS[row][0])[: ROWS[row][1]][-5:].tolist()
    sizes = [4 * (1, 2, 4)[i % 3] if pictures_of(i) else 0 for i in past]
    lists = np.tile([0, 1], (len(ROWS), 1))

    def at(length, room):
        known = context(keywords=None, neighbors=None, history_patches=room)
        return CandidateSource(known, prompt_config, ROWS, lists, length=length).example(row, 0)

    def lines(example):
        prefix = trained.decode(example.tokens[example.suffix_ids == 0])
        found = re.search(r"likes (.*)", prefix)
        return found[1].split(", ") if found else []

    titles = [CATALOG[i].text["title"] for i in past]
    for room in range(sum(sizes) + 2):
        example, left, wanted = at(1000, room), room, []
        for item, size, title in reversed(list(zip(past, sizes, titles, strict=True))):
            left -= size
            wanted.insert(0, (pictures_of(item) if left >= 0 else "") + title)
        assert lines(example) == wanted
        out = sum(
            1 for line, i in zip(wanted, past, strict=True) if pictures_of(i) and "<" not in line
        )
        assert example.counts.get("history_images_left_out", 0) == (out if room else 0)
    whole = at(1000, 1000)
    for length in range(len(whole), 30, -1):
        example = at(length, 1000)
        kept = 5 - example.counts["history_left_out"]
        assert (
            lines(example)
            == [pictures_of(i) + t for i, t in zip(past, titles, strict=True)][5 - kept :]
        )
        shown = [i for i in past[5 - kept :] if pictures_of(i)]
        assert len(example.images) == len(shown) + 2
        for image, item in zip(example.images, shown, strict=False):
            wanted = prompt_config.processor.patchify(CATALOG.image(item))
            np.testing.assert_array_equal(image["patches"], wanted["patches"])


def test_questions_after_a_history_with_images(trained, prompt_config):
    plain = context(keywords=None, neighbors=None, history_patches=1000)
    for task in ("rank", "next_keywords"):
        example = recommend(prompt_config, {task: 1}, plain).example(9, 0)
        past = HISTORIES.of(ROWS[9][0])[: ROWS[9][1]][-5:]
        assert len(example.images) == sum(1 for i in past if pictures_of(i)) > 0
        assert example.counts.get("images_missing", 0) == sum(not pictures_of(i) for i in past)


def test_text_sft_shows_no_image_anywhere(trained, prompt_config):
    text = context(keywords=None, neighbors=None, images=False)
    source = recommend(prompt_config, {"pointwise": 1}, text)
    example = source.example(9, 0)
    assert source.patch_width == 0 and example.images == ()
    assert "<|vision_start|>" not in trained.decode(example.tokens)
    blind = recommend(
        toy_items.prompt_config(trained, processor=None), {"pointwise": 1},
        context(keywords=None, neighbors=None),
    )  # fmt: skip
    assert same(example, blind.example(9, 0))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_negatives_is_of_the_items_that_a_retriever_ranks_first(
    trained, prompt_config, share
):
    row = len(ROWS) - 1
    user, position = ROWS[row]
    known = set(HISTORIES.of(user)[: TRAIN_END[user]].tolist())
    target = int(HISTORIES.of(user)[position])
    free = [item for item in range(24) if item not in known]
    first = np.array([target, *list(known)[:2], *free[:6], -1])  # six of these may be negatives
    retrieved = np.tile(first.astype(np.int32), (len(ROWS), 1))
    source = recommend(
        prompt_config, {"pointwise": 1}, context(retrieved=retrieved), retriever_negatives=share
    )
    counts = Counter()
    for draw in range(400):
        example = source.example(row, draw)
        items = candidates_of(trained, example)
        assert len(set(items)) == 5 and example.labels.sum() == 1
        assert items[int(np.argmax(example.labels))] == target
        counts.update(set(items) - {target})
    assert not known & set(counts)
    inside = sum(counts[item] for item in free[:6]) / 1600
    # of the other negatives some fall among the six as well, but for those already drawn
    uniform = (4 - 4 * share) / 4 * 6 / len(free)
    assert abs(inside - share - uniform) < 0.06 if share < 1 else inside == 1
    if share == 0:
        plain = recommend(prompt_config, {"pointwise": 1})
        assert same(source.example(row, 3), plain.example(row, 3))


@pytest.mark.parametrize("templates", ["terse", "full"])
def test_neighbors_are_counted_by_keyword(trained, templates):
    """Most users first; of equal counts the most similar user's first. What the user had is not
    shown; an item without keywords counts by its text."""
    row = int(np.argmax(ROWS[:, 1]))
    user, position = ROWS[row]
    past = HISTORIES.of(user)[:position].tolist()
    free = [item for item in range(24) if item not in past]
    near = [free[0], past[0], *free[1:5], -1]
    keywords = list(KEYWORDS)
    keywords[free[2]] = ""
    counts = Counter()
    for item in (i for i in near if i >= 0 and i not in past):
        counts.update(
            [word.strip() for word in KEYWORDS[item].split(",")]
            if item != free[2]
            else [CATALOG[item].text["title"]]
        )
    assert max(counts.values()) > 1
    neighbors = np.tile(np.array(near, np.int32), (len(ROWS), 1))

    def prefix(limit, length=1000, **changes):
        known = context(neighbors=neighbors, keywords=keywords)
        config = toy_items.prompt_config(trained, templates, aggregate=limit)
        options = dict(length=length, similar=7) | changes
        lists = np.tile([0, 1], (len(ROWS), 1))
        example = CandidateSource(known, config, ROWS, lists, **options).example(row, 0)
        text = trained.decode(example.tokens[example.suffix_ids == 0])
        opening = {"terse": "similar", "full": "how many of them did:"}[templates]
        found = re.search(f"{opening} (.*)", text)
        return example, found[1].split(", ") if found else []

    for limit in (1, 3, 50):
        _, words = prefix(limit)
        ordered = sorted(counts.items(), key=lambda pair: -pair[1])  # stable
        assert words == [f"{word} {count}" for word, count in ordered[:limit]]
    example, all_of_them = prefix(50)
    shorter, words = prefix(50, length=len(example) - 40)
    assert shorter.counts["similar_left_out"] == len(all_of_them) - len(words)
    assert words == all_of_them[: len(words)]  # the rarest go first
    _, few = prefix(50, similar=2)
    assert len(few) < len(all_of_them)


def test_users_are_refused_who_leave_too_few_negatives():
    """Known are the items of a user's training interactions, each once."""
    rng = np.random.default_rng(0)
    for users in ([0], [2, 3], range(len(HISTORIES))):
        end = rng.integers(1, HISTORIES.lengths + 1)
        known = [len(set(HISTORIES.of(u)[: end[u]].tolist())) for u in users]
        left = len(CATALOG) - max(known)
        sizes = {"num_items": len(CATALOG), "negatives": left}
        check_negatives(HISTORIES, np.array(users), end, **sizes)
        with pytest.raises(UserError, match=f"{left} items of the catalog are left"):
            check_negatives(HISTORIES, np.array(users), end, **sizes | {"negatives": left + 1})
