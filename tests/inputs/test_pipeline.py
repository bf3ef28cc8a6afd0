"""Batches taken apart give back the examples, and an interrupted stream goes on with the same."""

import json
import os
import signal
import sys
from collections import Counter

import grain
import numpy as np
import pytest
import toy_items

from mmsrec_jax.inputs.item_prompts import SummarySource
from mmsrec_jax.inputs.pipeline import ahead, batches
from mmsrec_jax.inputs.recommend import CandidateSource, PromptContext, RecommendSource
from mmsrec_jax.inputs.sharded import Sharded
from mmsrec_jax.inputs.warmup import WarmupSource
from mmsrec_jax.models.batch import concatenate, fields_of
from mmsrec_jax.runtime import processes
from mmsrec_jax.runtime.errors import UserError

HISTORIES = toy_items.histories()
ROWS = toy_items.train_rows(HISTORIES)
CONTEXT = PromptContext(toy_items.catalog(), HISTORIES, toy_items.keywords())
MIX = {"pointwise": 1, "rank": 1, "next_keywords": 1, "align": 1}
SHAPE = dict(batch_size=3, length=320, patches=160, answers=10, targets=60)


@pytest.fixture(scope="module")
def source(prompt_config):
    return RecommendSource(CONTEXT, prompt_config, ROWS, length=300, seed=0, tasks=MIX, negatives=3)


def take(dataset, n):
    iterator = iter(dataset)
    try:
        return [next(iterator) for _ in range(n)]
    finally:
        iterator.close()


def arrays(batch):
    return {name: array for name, array, _ in fields_of(batch)}


def same(a, b):
    a, b = arrays(a), arrays(b)
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def unpack(batch):
    """Examples of a packed batch, in the form of comparable tuples of bytes and numbers."""
    for b in range(len(batch.tokens)):
        image = patch = window = 0
        ids, windows = batch.images.image_ids[b], batch.images.window_ids[b]
        segments = batch.segment_ids[b]
        assert (np.diff(segments[segments > 0]) >= 0).all()
        assert not batch.tokens[b][segments == 0].any()
        for segment in range(1, segments.max() + 1):
            where = np.flatnonzero(segments == segment)
            assert (np.diff(where) == 1).all()
            tokens = batch.tokens[b, where]
            slots = int((tokens == 5).sum())  # <|image_pad|>
            used = slice(patch, patch + 4 * slots)
            images = ids[used]
            assert (images > image).all() and (windows[used] > window).all()
            image, window, patch = max([image, *images]), max([window, *windows[used]]), used.stop
            answers = batch.answer_positions[b]
            mine = np.isin(answers, where)
            weighted = batch.target_positions[b]
            np.testing.assert_array_equal(
                weighted[np.isin(weighted, where)],
                where[batch.loss_weights[b, where] > 0],
            )
            yield (
                tokens.tolist(),
                batch.positions[b][:, where].tolist(),
                batch.suffix_ids[b, where].tolist(),
                batch.loss_weights[b, where].tolist(),
                batch.images.pixels[b, used].tolist(),
                batch.images.hw[b, used].tolist(),
                (answers[mine] - where[0]).tolist(),
                batch.labels[b][mine].tolist(),
            )
        assert (ids[patch:] == 0).all() and (windows[patch:] == 0).all()


def opened_devices(x):
    """Grain imports jax in workers of a program that does not keep it out, such as this one; that
    alone opens no device."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    return x, os.getpid(), [] if bridge is None else list(bridge._backends)


def test_a_signal_does_not_end_workers_and_they_open_no_device():
    dataset = ahead(grain.MapDataset.range(1000).map(opened_devices), 1, waiting=1)
    iterator = iter(dataset)
    _, worker, _ = next(iterator)
    assert worker != os.getpid()
    os.kill(worker, signal.SIGTERM)
    assert [next(iterator) for _ in range(20)] == [(n, worker, []) for n in range(1, 21)]
    iterator.close()


@pytest.mark.parametrize("pack", [True, False])
def test_restored_at_the_end_of_an_epoch_nothing_comes(source, pack):
    settings = SHAPE if pack else SHAPE | {"batch_size": 4}
    iterator = iter(batches(source, **settings, repeat=False, pack=pack))
    count = sum(1 for _ in iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    assert state == {"draw": len(source) if pack else count * 4}
    iterator.set_state(state)
    with pytest.raises(StopIteration):
        next(iterator)
    iterator.close()


def flat(example):
    return (
        example.tokens.tolist(),
        example.positions.tolist(),
        example.suffix_ids.tolist(),
        example.loss_weights.tolist(),
        [p for image in example.images for p in image["patches"].tolist()],
        [p for image in example.images for p in image["hw"].tolist()],
        example.answer_positions.tolist(),
        example.labels.tolist(),
    )


def test_packing_loses_and_changes_nothing(source):
    counts = Counter()
    dataset = batches(source, **SHAPE, shuffle=False, repeat=False, counts=counts)
    found = sorted(example for batch in dataset for example in unpack(batch))
    assert found == sorted(flat(source.example(row, row)) for row in range(len(source)))
    assert counts["examples"] == len(source) and not counts["skipped"]
    assert counts["images_missing"] == sum(
        source.example(row, row).counts.get("images_missing", 0) for row in range(len(source))
    )
    batch = take(batches(source, **SHAPE), 1)[0]
    assert (batch.segment_ids.max(axis=1) > 1).all()  # several examples share a row
    assert batch.images.pixels.shape == (3, 160, 48) and batch.positions.shape == (3, 3, 320)
    assert batch.answer_positions.shape == (3, 10)


@pytest.mark.parametrize(("workers", "then", "look_ahead"), [(0, 0, 0), (2, 1, 5)])
def test_restored_stream_goes_on_with_the_same_batches(source, workers, then, look_ahead):
    options = dict(**SHAPE, seed=3, look_ahead=look_ahead)
    dataset = batches(source, **options, workers=workers)
    iterator = iter(dataset)
    whole = [next(iterator) for _ in range(3)]
    state = json.loads(json.dumps(iterator.get_state()))
    whole += [next(iterator) for _ in range(4)]
    again = iter(batches(source, **options, workers=then))
    next(again)
    again.set_state(state)
    assert all(same(next(again), batch) for batch in whole[3:])
    if workers:
        assert all(map(same, take(batches(source, **options), 7), whole)) and "waiting" in state
    for it in (iterator, again):
        it.close()


@pytest.mark.parametrize(("pack", "shards"), [(True, 2), (False, 3)])
def test_a_run_that_dies_often_sees_the_unbroken_stream(source, pack, shards):
    rng, shape = np.random.default_rng(shards + 10 * pack), SHAPE | {"batch_size": 2 * shards}
    length = 6

    def make(shard):
        return batches(source, **shape, seed=1, pack=pack, shard=shard, shards=shards)

    for shard in range(shards):
        whole, at, state = take(make(shard), length), 0, None
        while at < length:
            iterator = iter(make(shard))
            if state is not None:
                iterator.set_state(state)
            for batch in whole[at : at + int(rng.integers(1, 4))]:
                assert same(next(iterator), batch)
                at += 1
            state = json.loads(json.dumps(iterator.get_state()))
            for _ in range(int(rng.integers(2))):  # seen after the last save, and lost
                next(iterator)
            iterator.close()


def test_workers_make_the_batches_of_an_evaluation(prompt_config, monkeypatch):
    made_by = grain.MultiprocessingOptions
    options_of_workers = []

    def kept(**options):
        options_of_workers.append(options)
        return made_by(**options)

    monkeypatch.setattr(grain, "MultiprocessingOptions", kept)
    source = SummarySource(toy_items.catalog(), prompt_config, length=60)
    options = dict(batch_size=5, length=60, patches=16, shuffle=False, repeat=False, pack=False)
    counts, counted = Counter(), Counter()
    wanted = list(batches(source, **options, counts=counts))
    found = list(batches(source, **options, counts=counted, workers=2))
    assert len(found) == len(wanted) == 5 and all(map(same, found, wanted))
    assert counted == counts and counts["examples"] == 24
    # A batch with pictures takes hundreds of MB, and each may wait on both sides of the process.
    assert options_of_workers == [{"num_workers": 2, "per_worker_buffer_size": 1}]


def test_epochs_and_seeds_differ(prompt_config):
    source = RecommendSource(
        CONTEXT, prompt_config, ROWS[:8], length=300, seed=0, tasks={"pointwise": 1}, negatives=3
    )
    shape = dict(batch_size=8, length=300, patches=64, answers=4, pack=False)
    first, second = take(batches(source, **shape), 2)
    assert sorted(first.index) == sorted(second.index) == list(range(8))
    assert first.index.tolist() != second.index.tolist()
    order, again = np.argsort(first.index), np.argsort(second.index)
    assert (first.tokens[order] != second.tokens[again]).any(axis=1).sum() >= 7
    assert same(take(batches(source, **shape), 1)[0], first)
    other = take(batches(source, **shape, seed=1), 1)[0]
    assert other.index.tolist() != first.index.tolist()


def test_processes_share_every_row_once(prompt_config):
    source = SummarySource(toy_items.catalog(), prompt_config, length=60)
    options = dict(batch_size=10, length=60, patches=16, shuffle=False, repeat=False, pack=False)
    shares = [list(batches(source, **options, shard=p, shards=2)) for p in range(2)]
    assert [len(share) for share in shares] == [3, 3]  # 24 items, 30 rows
    index = np.concatenate([batch.index for share in shares for batch in share])
    assert sorted(index) == [-1] * 6 + list(range(24))
    for share in shares:
        for batch in share:
            assert batch.tokens.shape == (5, 60) and batch.answer_positions is None
            assert not batch.segment_ids[batch.index < 0].any()
            for b in np.flatnonzero(batch.index >= 0):
                expected = source.example(int(batch.index[b]), 0).tokens
                np.testing.assert_array_equal(batch.tokens[b, : len(expected)], expected)


def test_two_processes_take_turns_in_an_endless_stream(prompt_config):
    source = WarmupSource(
        toy_items.catalog(), prompt_config, length=80, seed=0, tasks={"describe": 1}
    )
    options = dict(length=80, patches=16, targets=40, pack=False)
    one = take(batches(source, batch_size=4, **options), 14)
    two = [take(batches(source, batch_size=4, **options, shard=p, shards=2), 14) for p in range(2)]
    for k in range(14):  # more than two epochs
        merged = np.stack([two[0][k].tokens, two[1][k].tokens], 1).reshape(4, -1)
        np.testing.assert_array_equal(merged, one[k].tokens)


def test_one_process_goes_on_with_the_data_of_two(source, monkeypatch):
    def make(shard, shards):
        shape = SHAPE | {"batch_size": 8}
        return batches(source, **shape, seed=3, shard=shard, shards=shards)

    one = iter(Sharded(make, 4, (0, 1)))
    two = [iter(Sharded(make, 4, (index, 2))) for index in range(2)]
    for _ in range(3):
        assert same(concatenate([next(it) for it in two]), next(one))
    here = [{str(shard): it.get_state() for shard, it in side._iterators.items()} for side in two]
    monkeypatch.setattr(processes, "gather", lambda mine: here)
    state = json.loads(json.dumps(two[0].get_state()))
    monkeypatch.undo()
    assert state == one.get_state()
    alone = iter(Sharded(make, 0, (0, 1)))  # which would begin with one shard
    alone.set_state(state)
    for _ in range(4):
        wanted = next(one)
        assert same(next(alone), wanted)
        assert same(concatenate([next(it) for it in two]), wanted)
    with pytest.raises(UserError, match="4 shards, which 3 processes cannot share"):
        iter(Sharded(lambda *_: batches(source, **SHAPE), 0, (0, 3))).set_state(state)
    with pytest.raises(UserError, match="2 shards, which 4 processes cannot share"):
        Sharded(make, 2, (0, 4))
    for iterator in (one, alone, *two):
        iterator.close()


def test_text_only(trained):
    blind = toy_items.prompt_config(trained, processor=None)
    source = CandidateSource(CONTEXT, blind, ROWS[:3], np.arange(9).reshape(3, 3), length=200)
    options = dict(batch_size=2, length=200, answers=3, pack=False, shuffle=False, repeat=False)
    found = list(batches(source, **options))
    assert [batch.index.tolist() for batch in found] == [[0, 1], [2, -1]]
    assert found[0].images is None
    assert (found[1].answer_positions[1] == -1).all()
    with pytest.raises(UserError, match="patches=8"):
        batches(source, **options, patches=8)


def test_what_does_not_fit_is_an_error_or_counted(source, prompt_config):
    rows = dict(shuffle=False, repeat=False, pack=False)
    with pytest.raises(UserError, match=r"^patches: the example of row \d+ needs \d+, a row"):
        list(batches(source, **SHAPE | {"patches": 4}, **rows))
    with pytest.raises(UserError, match=r"^config.sft.length: the example of row \d+ needs"):
        shape = SHAPE | {"length": 30, "targets": 30}
        list(batches(source, **shape, **rows, section="config.sft"))
    counts = Counter()
    found = list(
        batches(source, **SHAPE | {"answers": 3}, shuffle=False, repeat=False, counts=counts)
    )
    pointwise = sum(len(source.example(r, r).labels) > 0 for r in range(len(source)))
    assert counts == {**counts, "skipped": pointwise, "examples": len(source) - pointwise}
    assert all((batch.answer_positions == -1).all() for batch in found)
    endless = iter(batches(source, **SHAPE | {"length": 10, "targets": 10}))
    with pytest.raises(UserError, match="100 examples one after the other"):
        next(endless)
    for options, message in (
        (dict(shards=2), "batch_size=3"),
        (dict(shards=3, repeat=False), "differ in number"),
    ):
        with pytest.raises(UserError, match=message):
            batches(source, **SHAPE, **options)
