"""Prompts of MLLM-SRec: what they tell, what they must not read, and which tokens have a loss."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import toy_items
import toy_tastes
from test_tastes import changed_after
from toy_tastes import HISTORIES, ROWS

from mmsrec_jax.data.windows import gap_words
from mmsrec_jax.inputs import chains
from mmsrec_jax.inputs.pairs import PairBatches, PairRoom
from mmsrec_jax.inputs.taste_prompts import (
    ChainTexts,
    TasteCandidates,
    TastePairs,
    TasteRecommend,
)
from mmsrec_jax.prompts import sections
from mmsrec_jax.runtime.errors import UserError

ROOM = PairRoom(prompt=500, item=24, patches=16, tail=1, words=16)
SIZES = {"history": 5, "similar": 3}
LISTS = np.tile(np.array([4, 1, 9], np.int32), (len(ROWS), 1))


@pytest.fixture(scope="module", params=["terse", "full"])
def prompt_config(trained, request):
    return toy_items.prompt_config(
        trained, request.param, text_tokens=24, ratings=True, pauses=True
    )


@pytest.fixture(scope="module")
def tastes(prompt_config):
    return toy_tastes.tastes(prompt_config)


def pairs(tastes, room=ROOM, **changes):
    known = toy_tastes.context(tastes, **changes)
    config = tastes.renderer.prompt_config
    return TastePairs(known, config, ROWS, room=room, history_end=True, **SIZES)


def opening(prompts, row):
    return sections.render(prompts.sections(row))


def row_of(user, position):
    return ROWS.tolist().index([user, position])


def test_a_prompt_word_for_word(trained):
    config = toy_items.prompt_config(trained, ratings=True, pauses=True)
    tastes = toy_tastes.tastes(config)
    user, position = 5, 9
    times = HISTORIES.times(user)
    between = gap_words(times[7] - times[5])
    chain, before = tastes.preference(5, 3), tastes.preference(5, 2)
    entries = tastes.entries(5, 4, 10)[:-1]  # with the pause up to the target
    profile = f"profile {tastes.profile(5, 3)}\n"
    listed = f"likes {', '.join(entries)}\n"
    row = row_of(user, position)
    assert opening(pairs(tastes), row) == f"{listed}{profile}taste {before}\nso {chain}\n"
    without = pairs(tastes, chains=None, profiles=None)  # the last window is told among the others
    assert opening(without, row) == f"{listed}taste {before} {between} {chain}\n"
    absent = pairs(tastes, chains=[""] * len(ROWS))
    assert opening(absent, row) == f"{listed}{profile}taste {before}\n"


def test_prompts_read_nothing_at_or_after_their_target(prompt_config, tastes):
    """But for the time of the target, which is that of the question."""
    for row in range(0, len(ROWS), 4):
        other = toy_tastes.tastes(prompt_config, changed_after(*ROWS[row].tolist()))
        assert opening(pairs(tastes), row) == opening(pairs(other), row)
        last = row_of(int(ROWS[row, 0]), int(HISTORIES.lengths[ROWS[row, 0]]) - 1)
        if last != row:
            assert opening(pairs(tastes), last) != opening(pairs(other), last)


def test_what_a_model_wrote_as_counting_says_gives_the_prompts_of_training(tastes):
    """So training and scoring differ by the words of the chain and by nothing else."""
    config, computed = tastes.renderer.prompt_config, pairs(tastes)
    given = pairs(tastes, chains=["@" if text else "" for text in computed.context.chains])
    for row, chain in enumerate(computed.context.chains):
        assert opening(given, row).replace("@", chain) == opening(computed, row)
    source = TasteRecommend(
        toy_tastes.context(tastes), config, ROWS, length=1500, seed=0, negatives=2,
        tasks={"pointwise": 1.0}, **SIZES,
    )  # fmt: skip
    scored = TasteCandidates(toy_tastes.context(tastes), config, ROWS, LISTS, length=1500, **SIZES)
    apart = pairs(tastes)
    for row in range(0, len(ROWS), 5):
        prefixes = [
            example.tokens[example.suffix_ids == 0]
            for example in (source.example(row, 0), scored.example(row, 0))
        ]
        prefixes.append(apart.prompt(row, Counter()).piece.tokens)
        np.testing.assert_array_equal(prefixes[0], prefixes[1])
        np.testing.assert_array_equal(prefixes[0], prefixes[2])


def test_the_loss_is_on_answers_alone(tastes, trained):
    """The chain in the prefix, what the item offers before the label, and the label."""
    config = tastes.renderer.prompt_config
    known = toy_tastes.context(tastes, token_weight=0.25)
    source = TasteCandidates(known, config, ROWS, LISTS, length=1500, **SIZES)
    offers = config.templates.taste.offers
    for row in range(0, len(ROWS), 3):
        example = source.example(row, 0)
        weighted = example.loss_weights > 0
        prefix = example.suffix_ids == 0
        told = trained.decode(example.tokens[prefix & weighted])
        assert told.strip() == known.chains[row]
        assert weighted[prefix].sum() == 0 or weighted[prefix][-1]
        for c, item in enumerate(LISTS[row], 1):
            own = example.suffix_ids == c
            answer = trained.decode(example.tokens[own & weighted])
            words = tastes.renderer.words(int(item))
            assert answer in (offers.format(words=words) + label for label in ("yes", "no"))
            assert example.loss_weights[own][-1] == 1.0  # of the label
            assert set(example.loss_weights[own & weighted][:-1]) == {0.25}
            asked = trained.decode(example.tokens[own & ~weighted])
            assert asked.endswith(config.chat.middle)
        assert set(example.loss_weights[prefix & weighted]) <= {0.25}
    bare = toy_tastes.context(tastes, chains=None, offers=False)
    example = TasteCandidates(bare, config, ROWS, LISTS, length=1500, **SIZES).example(9, 0)
    assert (example.loss_weights > 0).sum() == 3


def test_targets_in_the_prompts_of_the_cached_form(tastes, trained):
    made, words = pairs(tastes), tastes.renderer.prompt_config.templates
    for row in range(2, len(ROWS), 3):
        known = made.training_prompt(row, Counter())
        user, position = ROWS[row].tolist()
        later = tastes.entries(user, max(0, position - 5), position + 1)[1:-1]
        past = HISTORIES.of(user)[max(0, position - 5) : position]
        assert known.nexts.tolist() == past[1:].tolist() and len(known.ends) == len(later)
        for count, end in enumerate(known.ends, 1):
            told = trained.decode(known.prompt.piece.tokens[: end + 1])
            shown = tastes.entries(user, max(0, position - 5), position)[:count]
            assert told.endswith(shown[-1])
        told = trained.decode(known.prompt.piece.tokens[known.targets])
        expected = "".join(
            words.item_separator + words.item_line.format(words=entry) for entry in later
        )
        if chain := made.context.chains[row]:
            assert told.startswith(expected) and told.rstrip().endswith(chain.rstrip())
            assert len(told) - len(expected) - len(chain) <= 4
        else:
            assert told == expected


def test_a_disliked_target_is_a_negative(trained):
    config = toy_items.prompt_config(trained)
    liked = HISTORIES.ratings >= 4
    for positives in ("liked", "all"):
        made = toy_tastes.tastes(config, settings={"positives": positives})
        source = TasteRecommend(
            toy_tastes.context(made), config, ROWS, length=1500, seed=0, negatives=3,
            tasks={"pointwise": 1.0}, **SIZES,
        )  # fmt: skip
        for row, (user, position) in enumerate(ROWS.tolist()):
            positive = liked[HISTORIES.offsets[user] + position] or positives == "all"
            assert source.example(row, row).labels.sum() == positive


def test_disliked_items_of_the_past_compete(trained):
    made = toy_tastes.tastes(toy_items.prompt_config(trained))
    prompts = pairs(made)
    batch, _ = PairBatches(prompts, steps=4, users=6, items=24, align=0.0, seed=0)[0]
    assert batch.competes.shape == (6, 24)
    order = prompts.rows[[PairBatches(
        prompts, steps=4, users=6, items=24, align=0.0, seed=0
    )._order[i] for i in range(6)]]  # fmt: skip
    for at, (user, position) in enumerate(order.tolist()):
        start = HISTORIES.offsets[user]
        had = HISTORIES.of(user)[:-1]
        kept = had[HISTORIES.ratings[start:][: len(had)] >= 4]
        expected = ~np.isin(np.arange(24), np.setdiff1d(kept, HISTORIES.of(user)[position]))
        np.testing.assert_array_equal(batch.competes[at], expected)


def test_a_user_is_where_the_history_ends_which_sees_no_text_about_it(tastes, trained):
    made, counts = pairs(tastes), Counter()
    bare = pairs(tastes, chains=None, profiles=None)
    for row in range(2, len(ROWS), 3):
        prompt, (user, position) = made.prompt(row, counts), ROWS[row].tolist()
        history_end, end = prompt.ends
        seen = prompt.piece.tokens[: history_end + 1]
        entry = tastes.entries(user, 0, position + 1)[-2]  # with the pause up to the target
        assert trained.decode(seen).endswith(entry)
        np.testing.assert_array_equal(seen, bare.prompt(row, Counter()).piece.tokens[: len(seen)])
        assert history_end < end == len(prompt.piece) - 1
    assert not counts["history_ends_left_out"]


def test_the_trained_model_goes_on_where_the_chain_begins(tastes):
    config, known = tastes.renderer.prompt_config, toy_tastes.context(tastes)
    source = ChainTexts(known, config, ROWS, length=500, **SIZES)
    whole = pairs(tastes)
    for row in np.flatnonzero(ROWS[:, 1] >= 2)[::4]:
        prompt, piece = source.example(row, 0), whole.prompt(row, Counter()).piece
        np.testing.assert_array_equal(prompt.tokens, piece.tokens[: len(prompt)])
        rest = config.chat._backend.decode(piece.tokens[len(prompt) :].tolist())
        assert rest.strip() == known.chains[row]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ("[1]", "line 2: no object"),
        ({"user": 3, "position": 1, "chain": "x"}, "line 2: user is 3; it must be str"),
        ({"user": "u1", "chain": "x"}, "line 2: position is null; it must be int"),
        ({"user": "u11", "position": 1, "chain": "x"}, "line 2: no user 'u11'; did you mean"),
        ({"user": "u1", "position": 6, "chain": "x"}, "position 6: user 'u1' has 6 interactions"),
        ({"user": "u1", "position": -1, "chain": "x"}, "position -1: user 'u1' has 6 interactio"),
        ({"user": "u1", "position": 2, "chain": " "}, "line 2: chain is empty"),
        ({"user": "u0", "position": 3, "chain": "x"}, "line 2: user 'u0', position 3 has a line"),
    ],
)
def test_a_file_of_chains_and_its_mistakes(tmp_path, prompt_config, line, message):
    path = tmp_path / "chains.jsonl"
    first = json.dumps({"user": "u0", "position": 3, "chain": "likes\n oak", "by": "teacher"})
    path.write_text(first + "\n\n")
    assert chains.read(path, HISTORIES) == {(0, 3): "likes oak"}
    made = toy_tastes.tastes(prompt_config)
    found = chains.ComputedChains(made, np.array([[0, 3], [0, 1], [1, 5]]), {(0, 3): "likes oak"})
    assert [found[row] for row in range(3)] == ["likes oak", "", made.preference(1, 1)]
    path.write_text(first + "\n" + (line if isinstance(line, str) else json.dumps(line)))
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        chains.read(path, HISTORIES)
    with pytest.raises(UserError, match="no such file"):
        dataclasses.replace(chains.ChainSettings(), file=str(tmp_path / "no")).check_file()
