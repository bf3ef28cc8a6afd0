"""The stored catalog: scores of pairs read directly, whatever the sizes of the programs."""

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest
import toy_items
import toy_model
from toy_examples import ROWS, context

from mmsrec_jax.inference import cached_catalog
from mmsrec_jax.inference.cached_catalog import CachedCatalog
from mmsrec_jax.inference.pair_margins import pair_margins
from mmsrec_jax.inputs.pairs import PairPrompts, PairRoom
from mmsrec_jax.models.late_interaction import Tail, encode
from mmsrec_jax.runtime.sharding import make_mesh

SIZES = {"history": 5, "similar": 3, "history_end": True}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    tokenizer = toy_items.make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    room = PairRoom(prompt=60, item=24, patches=16, tail=1, words=16)
    config = toy_items.prompt_config(tokenizer)
    prompts = PairPrompts(context(), config, ROWS, room=room, **SIZES)
    return toy_model.make(tokenizer, rank=0), prompts


def catalog(made, *, users, items, devices=1):
    model, prompts = made
    return CachedCatalog(
        "toy", model, prompts, score_users=users, score_items=items,
        yes_no_ids=prompts.renderer.prompt_config.chat.yes_no_ids, closeness=3.0,
        mesh=make_mesh(devices=jax.devices()[:devices]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(made):
    """All rows and items in one piece."""
    model, prompts = made
    users = prompts.users(range(len(ROWS)), Counter())
    items, tails = prompts.items(range(24), Counter())
    return np.asarray(
        pair_margins(
            model, encode(model, users), encode(model, items), Tail(prompts.tail, tails),
            yes_no_ids=prompts.renderer.prompt_config.chat.yes_no_ids, closeness=3.0,
        )
    )  # fmt: skip


@pytest.mark.parametrize(("users", "items", "devices"), [(4, 7, 1), (50, 24, 1), (8, 16, 8)])
def test_scores_do_not_depend_on_sizes_or_devices(made, expected, users, items, devices):
    at = np.array([3, 0, 11, 12, 5])
    found = catalog(made, users=users, items=items, devices=devices).row_scores(at)
    np.testing.assert_allclose(found, expected[at], atol=1e-4)
    assert np.ptp(expected) > 0.1


def test_an_item_is_one_forward_and_a_user_one_for_all_chunks(made, monkeypatch):
    ran = Counter()
    original = cached_catalog.programs

    def counted(*arguments):
        found = original(*arguments)

        def encode(state, batch):
            ran["rows"] += len(batch.tokens)
            return found.encode(state, batch)

        def score(*arguments):
            ran["scored"] += 1
            return found.score(*arguments)

        return type(found)(encode, score)

    monkeypatch.setattr(cached_catalog, "programs", counted)
    system = catalog(made, users=4, items=8)
    assert ran == {"rows": 24}
    system.row_scores(np.arange(8))
    assert ran == {"rows": 24 + 8, "scored": 2 * 3}
    system.for_prompts(made[1]).row_scores(np.arange(4))
    assert ran == {"rows": 24 + 8 + 4, "scored": 3 * 3}


def test_programs_are_compiled_once_for_a_shape(made):
    system = catalog(made, users=4, items=8)
    system.row_scores(np.arange(4))
    before = system._programs.encode._cache_size(), system._programs.score._cache_size()
    system.row_scores(np.arange(11))
    catalog(made, users=4, items=8).row_scores(np.arange(3))
    assert (system._programs.encode._cache_size(), system._programs.score._cache_size()) == before


def test_without_a_tail_scores_are_cosines_and_no_tokens_are_stored(made):
    model, with_tail = made
    room = dataclasses.replace(with_tail.room, tail=0)
    prompts = PairPrompts(context(), with_tail.renderer.prompt_config, ROWS, room=room, **SIZES)
    found = catalog((model, prompts), users=8, items=16)
    ends = []
    for rows in (
        prompts.users(range(len(ROWS)), Counter()),
        prompts.items(range(24), Counter())[0],
    ):
        last = np.asarray(rows.segment_ids).sum(1) - 1
        read = last[:, None] if rows.ends is None else rows.ends
        states = np.asarray(model(rows), np.float64)
        hidden = sum(states[np.arange(len(last)), at] for at in read.T)
        ends.append(hidden / np.linalg.norm(hidden, axis=1, keepdims=True))
    scores = found.row_scores(np.arange(len(ROWS)))
    np.testing.assert_allclose(scores, 3.0 * ends[0] @ ends[1].T, atol=1e-4)
    assert found.nbytes() < 0.1 * catalog(made, users=8, items=16).nbytes()
