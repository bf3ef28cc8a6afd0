"""Texts of windows: written for all users at once, and again only where their inputs changed."""

import dataclasses

import jax
import numpy as np
import pytest
import toy_items
import toy_model
import toy_tastes
from jax.sharding import Mesh

from mmsrec_jax.data.records import Histories
from mmsrec_jax.inference import sampler
from mmsrec_jax.inference.text_store import TextStore
from mmsrec_jax.inference.texts import Decoding
from mmsrec_jax.methods.user_texts import KEY, write_windows
from mmsrec_jax.runtime import sharding


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return toy_items.make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def model(tokenizer):
    return toy_model.make(tokenizer)


@pytest.fixture
def calls(monkeypatch):
    """Rows of every call of the model."""
    made, generate = [], sampler.generate_compiled

    def counted(*inputs):
        made.append(int((np.asarray(inputs[4]) >= 0).sum()))
        return generate(*inputs)

    monkeypatch.setattr(sampler, "generate_compiled", counted)
    return made


@pytest.fixture
def write(tokenizer, model, tmp_path):
    alone = sharding.make_mesh(devices=jax.devices()[:1])
    config = toy_items.prompt_config(tokenizer, ratings=True, pauses=True)

    def run(histories: Histories, batch_size: int = 64, mesh: Mesh = alone) -> TextStore:
        tastes = toy_tastes.tastes(config, histories)
        targets = np.stack([np.arange(len(histories)), histories.lengths], axis=1)
        decoding = Decoding(batch_size=batch_size, patches=0, max_new_tokens=4, gather_weights=True)
        store = TextStore(tmp_path / "preferences.jsonl", KEY)
        write_windows(
            store, tastes, tastes.windows.needed(targets),
            make_model=lambda: model, tokenizer=tokenizer, decoding=decoding, mesh=mesh,
        )  # fmt: skip
        return store

    return run


def with_one_more(histories: Histories, user: int, item: int) -> Histories:
    at = histories.offsets[user + 1]
    offsets = histories.offsets + (np.arange(len(histories.offsets)) > user)
    last = histories.timestamps[at - 1]
    return dataclasses.replace(
        histories, offsets=offsets, items=np.insert(histories.items, at, item),
        timestamps=np.insert(histories.timestamps, at, last + 60),
        ratings=np.insert(histories.ratings, at, 5),
    )  # fmt: skip


def test_all_users_are_written_in_as_many_calls_as_a_chain_has_windows(write, calls):
    store = write(toy_tastes.HISTORIES)
    count = sum(int(n) // 2 for n in toy_tastes.HISTORIES.lengths)  # steps of 2
    # Chains of 2 windows: 5 windows of one user are two and a half chains.
    assert len(calls) == 2 and sum(calls) == len(store) <= count
    assert {row["window"] for row in store} == set(range(5))


def test_a_new_interaction_costs_one_window_or_none(write, calls, tmp_path):
    histories = toy_tastes.HISTORIES
    store = write(histories)
    lines = (tmp_path / "preferences.jsonl").read_text().splitlines()
    calls.clear()
    write(histories)
    assert not calls
    costs = []
    for item in (3, 8, 5):
        histories = with_one_more(histories, 2, item)
        store = write(histories)
        costs.append(sum(calls))
        calls.clear()
    assert costs == [1, 0, 1]  # a window ends at every second interaction
    after = (tmp_path / "preferences.jsonl").read_text().splitlines()
    assert after[: len(lines)] == lines and len(after) == len(lines) + 2
    assert all(row["user"] == "u2" for row in list(store)[len(lines) :])


def test_a_changed_interaction_costs_the_windows_that_hold_it_and_their_chains(write, calls):
    write(toy_tastes.HISTORIES)
    calls.clear()
    ratings = toy_tastes.HISTORIES.ratings.copy()
    at = toy_tastes.HISTORIES.offsets[5] + 8  # user 5 has ten interactions
    ratings[at] = 6 - ratings[at] if ratings[at] != 3 else 5
    write(dataclasses.replace(toy_tastes.HISTORIES, ratings=ratings))
    assert sum(calls) == 1  # of windows that end after 2, 4, 6, 8 and 10 interactions


def test_written_in_parts_the_file_is_the_same(write, calls, tmp_path, monkeypatch):
    path = tmp_path / "preferences.jsonl"
    write(toy_tastes.HISTORIES, batch_size=3)
    whole, path_rows = path.read_text(), len(path.read_text().splitlines())
    for kept in (2, path_rows - 2):
        lines = whole.splitlines(keepends=True)
        path.write_text("".join(lines[:kept]) + lines[kept][:9])  # cut short by a kill
        calls.clear()
        write(toy_tastes.HISTORIES, batch_size=3)
        assert path.read_text() == whole and sum(calls) == path_rows - kept


def test_of_a_run_that_goes_on_on_another_mesh_the_file_is_the_same(write, calls, tmp_path):
    path = tmp_path / "preferences.jsonl"
    write(toy_tastes.HISTORIES, batch_size=8)
    lines = path.read_text().splitlines(keepends=True)
    kept = len(lines) // 2
    path.write_text("".join(lines[:kept]))
    calls.clear()
    write(toy_tastes.HISTORIES, batch_size=8, mesh=sharding.make_mesh(2, 2, 2))
    assert path.read_text() == "".join(lines) and sum(calls) == len(lines) - kept
