"""Rows of users and of items: the same tokens as in the joint form, at positions that fit all."""

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest
import toy_items
from toy_examples import CATALOG, HISTORIES, KEYWORDS, ROWS, TRAIN_END, context, recommend

from mmsrec_jax.inputs.pairs import PairBatches, PairPrompts, PairRoom, dataset
from mmsrec_jax.inputs.recommend import CandidateSource
from mmsrec_jax.models import batch_tree  # noqa: F401  a batch is a pytree then
from mmsrec_jax.runtime.errors import UserError

ROOM = PairRoom(prompt=60, item=24, patches=16, tail=1, words=16)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return toy_items.prompt_config(toy_items.make_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def prompts(config, room=ROOM, history_end=True, **changes):
    return PairPrompts(
        context(**changes), config, ROWS,
        room=room, history=5, similar=3, history_end=history_end,
    )  # fmt: skip


def batches(config, **options):
    given = {"steps": 40, "users": 4, "items": 12, "align": 0.0, "seed": 3} | options
    return PairBatches(prompts(config), **given)


def test_user_and_item_are_the_joint_prompt_in_two(config):
    lists = np.tile(np.array([4, 1], np.int32), (len(ROWS), 1))
    joint = CandidateSource(context(), config, ROWS, lists, length=400, history=5, similar=3)
    apart = prompts(config)
    users, (items, tails) = apart.users([2, 5], Counter()), apart.items([4, 1], Counter())
    for at, row in enumerate((2, 5)):
        example = joint.example(row, 0)
        prefix = example.tokens[example.suffix_ids == 0]
        n = len(prefix)
        assert users.segment_ids[at].sum() == n
        np.testing.assert_array_equal(users.tokens[at, :n], prefix)
        assert users.positions[at, :, :n].max() == ROOM.prompt - 1
        np.testing.assert_array_equal(np.diff(users.positions[at, :, :n]), 1)
        for column in range(2):
            own = example.suffix_ids == column + 1
            said, where = example.tokens[own][:-1], example.positions[:, own][:, :-1]
            m = len(said) - 1
            np.testing.assert_array_equal(items.tokens[column, :m], said[:-1])
            np.testing.assert_array_equal(apart.tail, said[-1:])
            shift = ROOM.prompt - where[0, 0]
            np.testing.assert_array_equal(items.positions[column, :, :m], where[:, :-1] + shift)
            assert tails[column] == where[0, -1] + shift


def test_later_items_of_a_history_are_what_is_to_be_told(config):
    """By the tokens of the prompt with the first item alone."""
    made = prompts(config)
    chat, words = config.chat, made.renderer.words
    for row in (3, 8, 13):
        user, position = ROWS[row]
        past = HISTORIES.of(user)[max(0, position - 5) : position]
        known = made.training_prompt(row, Counter())
        told = chat._backend.decode(known.prompt.piece.tokens[known.targets].tolist())
        if len(past) == 1:
            assert told == ""
        expected = ", ".join(words(int(item)) for item in past[1:])
        assert told.strip(" ,\n") == expected


def test_where_items_of_a_history_end_and_which_follow(config):
    """A beginning of the prompt that ends with an item tells the items so far and no more."""
    made = prompts(config)
    chat, words = config.chat, made.renderer.words
    for row in (3, 8, 13):
        user, position = ROWS[row]
        past = HISTORIES.of(user)[max(0, position - 5) : position]
        known = made.training_prompt(row, Counter())
        assert known.nexts.tolist() == past[1:].tolist()
        assert len(known.ends) == len(known.nexts)
        for count, end in enumerate(known.ends, 1):
            told = chat._backend.decode(known.prompt.piece.tokens[: end + 1].tolist())
            assert told.endswith(", ".join(words(int(item)) for item in past[:count]))


def test_a_user_is_where_the_history_and_where_the_prompt_ends(config):
    """Told by the tokens up to there; rows without a prompt are at 0."""
    made, counts = prompts(config), Counter()
    decode, words = config.chat._backend.decode, made.renderer.words
    chosen = [3, 8, 13]
    batch = made.users([*chosen, -1], counts)
    alone = prompts(config, history_end=False).users([*chosen, -1], Counter())
    for at, row in enumerate(chosen):
        user, position = ROWS[row]
        tokens, (history_end, end) = batch.tokens[at], batch.ends[at]
        assert decode(tokens[: history_end + 1].tolist()).endswith(
            words(int(HISTORIES.of(user)[position - 1]))
        )
        assert end == batch.segment_ids[at].sum() - 1 > history_end
        assert alone.ends[at].tolist() == [end]
    assert batch.ends[-1].tolist() == [0, 0] and not counts["history_ends_left_out"]
    np.testing.assert_array_equal(batch.tokens, alone.tokens)
    prompt = made.keywords_prompt(3)
    assert prompt.ends == (len(prompt.piece) - 1,) * 2


def test_a_history_that_ends_inside_a_token_is_read_at_the_end_of_the_prompt(config):
    made, counts = prompts(config), Counter()
    piece, (history, *others) = made.fitted(13, counts)
    longer = dataclasses.replace(
        history, entries=(*history.entries[:-1], history.entries[-1] + "s")
    )
    assert made.read(piece, [longer, *others], counts).ends == (len(piece) - 1,) * 2
    assert counts["history_ends_left_out"] == 1
    nothing = dataclasses.replace(history, entries=())
    assert made.read(piece, [nothing, *others], counts).ends == (len(piece) - 1,) * 2
    assert counts["history_ends_left_out"] == 1


def test_items_that_end_inside_a_token_of_the_prompt_are_counted_and_no_targets(config):
    made, counts = prompts(config), Counter()
    piece, (history, *_) = made.fitted(13, counts)
    first, *others = history.entries
    assert len(others) > 1
    other = dataclasses.replace(history, entries=(first, others[0] + "s", *others[1:]))
    ends = made.ends(piece, config.chat.head, other, counts)
    assert len(ends) == 1 and counts["history_targets_left_out"] == len(others)
    assert not len(made.after_each(13, other, ends))


def test_items_of_histories_are_in_the_batch_and_found_there(config):
    made = batches(config, steps=20)
    wanted = found = 0
    for step in range(20):
        batch, _ = made[step]
        rows = [made._order[step * 4 + i] for i in range(4)]
        for at, row in enumerate(rows):
            nexts = prompts(config).training_prompt(row, Counter()).nexts
            if not batch.history_weights[at].any():
                assert (batch.history_nexts[at] < 0).all()
                continue
            for place, item in zip(batch.history_nexts[at], nexts, strict=False):
                wanted += 1
                if place < 0:
                    continue
                found += 1
                expected = prompts(config).items([int(item)], Counter())[0].tokens[0]
                np.testing.assert_array_equal(batch.items.tokens[place], expected)
    assert found > 0.5 * wanted > 0


def test_the_answer_is_that_of_the_task(config):
    source = recommend(config, {"next_keywords": 1.0}, history=5, similar=3)
    made = prompts(config)
    room = PairRoom(prompt=60, item=24, patches=16, tail=1, words=40)
    for row in (2, 8):
        example = source.example(row, 0)
        user, position = ROWS[row]
        target = int(HISTORIES.of(user)[position])
        tokens, weights = prompts(config, room).next_keywords([target], Counter())
        prefix = made.prompt(row, Counter()).piece
        n = len(example.tokens) - len(prefix)
        np.testing.assert_array_equal(example.tokens[len(prefix) :], tokens[0, :n])
        np.testing.assert_array_equal(example.loss_weights[len(prefix) :], weights[0, :n])
        assert not weights[0, n:].any()


def test_what_the_user_had_is_no_neighbors_next_item(config):
    row = 7
    user, position = ROWS[row]
    past = HISTORIES.of(user)[:position]
    other = next(i for i in range(24) if i not in HISTORIES.of(user))
    neighbors = np.full((len(ROWS), 4), -1, np.int32)
    neighbors[row, :2] = past[0], other
    with_past = prompts(config, neighbors=neighbors).prompt(row, Counter()).piece
    neighbors[row, :2] = other, -1
    np.testing.assert_array_equal(
        with_past.tokens, prompts(config, neighbors=neighbors).prompt(row, Counter()).piece.tokens
    )


def test_targets_are_found_and_what_was_had_does_not_compete(config):
    made = batches(config)
    seen = set()
    for step in range(15):
        batch, counts = made[step]
        assert counts["examples"] == 4
        items = item_numbers(made, batch)
        assert len(set(items)) == 12
        for at in range(4):
            row = user_row(made, batch, at)
            user, position = ROWS[row]
            seen.add(row)
            assert items[batch.targets[at]] == HISTORIES.of(user)[position]
            had = set(HISTORIES.of(user)[: TRAIN_END[user]]) - {HISTORIES.of(user)[position]}
            assert batch.competes[at].tolist() == [item not in had for item in items]
    assert len(seen) > 20  # epochs go over all targets


def item_numbers(made, batch):
    """Which items the rows hold, by their tokens."""
    every, _ = made._prompts.items(range(24), Counter())
    known = {bytes(row): item for item, row in enumerate(every.tokens)}
    return [known[bytes(row)] for row in batch.items.tokens]


def user_row(made, batch, at):
    every = made._prompts.users(range(len(ROWS)), Counter())
    known = [row for row in range(len(ROWS)) if (every.tokens[row] == batch.users.tokens[at]).all()]
    targets = {row: HISTORIES.of(ROWS[row][0])[ROWS[row][1]] for row in known}
    wanted = item_numbers(made, batch)[batch.targets[at]]
    return next(row for row in known if targets[row] == wanted)


def test_shards_side_by_side_are_the_batch(config):
    whole, _ = batches(config, align=0.3)[5]
    parts = [batches(config, align=0.3, shard=shard, shards=2)[5][0] for shard in range(2)]
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    for a, b in zip(jax.tree.leaves(joined), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_position_is_gone_on_from(config, workers):
    counts = Counter()
    iterator = iter(dataset(batches(config, steps=8), workers, counts))
    first = [next(iterator) for _ in range(3)]
    state = iterator.get_state()
    rest = list(iterator)
    assert len(first) + len(rest) == 8 and counts["examples"] == 32
    again = iter(dataset(batches(config, steps=8), workers, Counter()))
    again.set_state(state)
    for a, b in zip(rest, again, strict=True):
        np.testing.assert_array_equal(a.users.tokens, b.users.tokens)
        np.testing.assert_array_equal(a.items.tokens, b.items.tokens)


def test_align_rows_hold_the_keywords_of_their_target(config):
    made = batches(config, align=1.0)
    batch, _ = made[0]
    items = item_numbers(made, batch)
    for at in range(4):
        target = items[batch.targets[at]]
        expected = made._prompts.keywords_prompt(target).piece.tokens
        np.testing.assert_array_equal(batch.users.tokens[at, : len(expected)], expected)
        words = [KEYWORDS[item] == KEYWORDS[target] for item in items]
        assert batch.competes[at].tolist() == [
            item == target or not same for item, same in zip(items, words, strict=True)
        ]


def test_log_frequency_is_how_often_an_item_is_in_a_batch(config):
    made = batches(config, steps=1500)
    found = np.zeros(24)
    for step in range(1500):
        rng = np.random.default_rng((3, step))
        rows = [made._order[step * 4 + i] for i in range(4)]
        rng.random(4)
        found[made._drawn(rng, made._targets[rows], np.array(rows))] += 1
    assert np.abs(np.exp(made._log_frequency) - found / 1500).max() < 0.07
    assert np.ptp(found / 1500) > 0.15


def test_long_texts_of_an_item_are_cut_to_its_room(config):
    whole = max(len(prompts(config)._candidate(i, Counter())) for i in range(len(CATALOG)))
    counts = Counter()
    small = PairRoom(prompt=60, item=whole - 2, patches=16, tail=1, words=16)
    batch, _ = prompts(config, small).items(range(24), counts)
    assert counts["items_with_shortened_texts"] > 0
    assert batch.tokens.shape == (24, whole - 2)


@pytest.mark.parametrize(
    ("room", "message"),
    [
        (PairRoom(prompt=60, item=1, patches=16, tail=1, words=16), "item_length"),
        (PairRoom(prompt=60, item=24, patches=2, tail=1, words=16), "item_patches"),
        (PairRoom(prompt=60, item=24, patches=16, tail=8, words=16), "tail"),
    ],
)
def test_what_has_no_room_is_named(config, room, message):
    with pytest.raises(UserError, match=message):
        prompts(config, room).items(range(24), Counter())


def test_a_question_that_leaves_no_room_for_an_answer(config):
    with pytest.raises(UserError, match="words_length=1"):
        prompts(config, PairRoom(prompt=60, item=24, patches=16, tail=1, words=1))


def test_a_prompt_without_room_and_sizes_that_do_not_divide(config):
    with pytest.raises(UserError, match="prompt_length"):
        small = PairRoom(prompt=0, item=24, patches=16, tail=1, words=16)
        prompts(config, small).users([0], Counter())
    with pytest.raises(UserError, match="num_items=13"):
        batches(config, items=13, shards=2)
    with pytest.raises(UserError, match="the catalog has 24"):
        batches(config, items=25)
