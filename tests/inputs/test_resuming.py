"""Streams that are killed, resumed and shared by other processes beside the unbroken one."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import sized_examples

from mmsrec_jax.inputs.pipeline import batches
from mmsrec_jax.inputs.sharded import Sharded
from mmsrec_jax.models.batch import concatenate, fields_of
from mmsrec_jax.runtime import processes

SMALL = sized_examples.SMALL


def stored(state):
    return json.loads(json.dumps(state))


def same(a, b):
    a, b = ({name: array for name, array, _ in fields_of(batch)} for batch in (a, b))
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def all_of(dataset):
    iterator = iter(dataset)
    try:
        return list(iterator)
    finally:
        iterator.close()


@pytest.mark.parametrize("look_ahead", [0, 1, 6])
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_batch_an_epoch_goes_on_to_its_end(look_ahead, seed):
    """Each batch is the last one before a kill once, the last one of the epoch too. Some examples
    are left out, wherever they come, also between those that wait."""
    source = sized_examples.small(40, seed, too_large=8)
    options = dict(batch_size=2, **SMALL, look_ahead=look_ahead, seed=seed, repeat=False)
    whole = all_of(batches(source, **options))
    assert len(whole) > 6
    rows = [row for batch in whole for row, _ in itertools.chain(*sized_examples.held(batch))]
    assert sorted(rows) == list(range(8, 40))
    iterator = iter(batches(source, **options))
    for at in range(len(whole) + 1):
        state = stored(iterator.get_state())
        again = iter(batches(source, **options))
        again.set_state(state)
        assert stored(again.get_state()) == state
        rest = list(again)
        again.close()
        assert len(rest) == len(whole) - at and all(map(same, rest, whole[at:]))
        assert next(iterator, None) is not None or at == len(whole)
    iterator.close()
    assert state == {"draw": len(source)}


@pytest.mark.parametrize("look_ahead", [0, 5])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_every_epoch_has_every_row_once_at_any_process_count(count, look_ahead):
    source = sized_examples.small(53)  # a prime: no count divides it
    options = dict(batch_size=2 * count, **SMALL, look_ahead=look_ahead, seed=3, shards=count)
    rows = {}
    for shard in range(count):
        iterator = iter(batches(source, shard=shard, **options))
        left = {draw for draw in range(3 * len(source)) if draw % count == shard}
        while left:  # of three epochs
            for row, draw in itertools.chain(*sized_examples.held(next(iterator))):
                assert draw not in rows
                rows[draw] = row
                left.discard(draw)
        iterator.close()
    epochs = [[rows[e * len(source) + i] for i in range(len(source))] for e in range(3)]
    assert all(sorted(epoch) == list(range(len(source))) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("seed", range(2))
def test_processes_that_come_and_go_read_the_unbroken_stream(seed, monkeypatch):
    """At each kill as many processes go on as divide the shards, in any order."""
    source, rng = sized_examples.small(60, seed), np.random.default_rng(seed)

    def make(shard, shards):
        return batches(
            source, batch_size=8, **SMALL, look_ahead=4, seed=seed, shard=shard, shards=shards
        )

    iterator = iter(Sharded(make, 8, (0, 1)))
    whole = [next(iterator) for _ in range(8)]
    iterator.close()
    at, state = 0, None
    while at < len(whole):
        count = int(rng.choice([1, 2, 4, 8]))
        running = [iter(Sharded(make, 8, (index, count))) for index in range(count)]
        if state is not None:
            for one in running:
                one.set_state(state)
        for batch in whole[at : at + int(rng.integers(1, 4))]:
            assert same(concatenate([next(one) for one in running]), batch)
            at += 1
        parts = [{str(s): it.get_state() for s, it in one._iterators.items()} for one in running]
        monkeypatch.setattr(processes, "gather", lambda mine, parts=parts: parts)
        states = [stored(one.get_state()) for one in running]
        assert all(each == states[0] for each in states)
        state = states[0]
        for one in running:
            one.close()


PROGRAM = """
import hashlib, json, sys
import sized_examples
from absl import flags
from mmsrec_jax.inputs.pipeline import batches
from mmsrec_jax.inputs.sharded import Sharded
from mmsrec_jax.models.batch import fields_of

flags.FLAGS(sys.argv[:1])  # grain's workers read them
workers, index, count, steps, state = map(json.loads, sys.argv[1:])

def make(shard, shards):
    return batches(
        sized_examples.small(60), batch_size=4, **sized_examples.SMALL, look_ahead=6, seed=1,
        workers=workers, shard=shard, shards=shards,
    )

iterator, found, draws = iter(Sharded(make, 2, (index, count))), [], []
if state:
    iterator.set_state(state)
for _ in range(steps):
    batch = next(iterator)
    rows = [array[b].tobytes() for _, array, _ in fields_of(batch) for b in range(len(array))]
    found.append([hashlib.sha256(row).hexdigest() for row in rows])
    states = {shard: it.get_state() for shard, it in iterator._iterators.items()}
    draws.append(min(state["draw"] for state in states.values()))
print(json.dumps([found, states, draws]))
iterator.close()
"""


def read(workers, processes, steps, state):
    """Of so many processes: hashes of the rows of each batch, unordered; the position; and the
    draw that comes next after each batch, in one of them."""
    found, states = [set() for _ in range(steps)], {}
    for index in range(processes):
        arguments = map(json.dumps, (workers, index, processes, steps, state))
        ran = subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True, text=True,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        mine, ours, draws = json.loads(ran.stdout)
        states |= ours
        for rows, more in zip(found, mine, strict=True):
            rows.update(more)
    return found, [states[shard] for shard in ("0", "1")], draws


@pytest.mark.processes
def test_other_processes_with_other_workers_go_on():
    """From the middle of an epoch, right before its end, at it, and from the next one."""
    whole, _, draws = read(0, 1, 20, None)
    end = sum(draw < len(sized_examples.small(60)) // 2 for draw in draws)  # of two shards
    assert 4 < end < 16
    found, state = [], None
    # Workers, processes and batches until the next stop.
    for part in ((2, 1, 3), (0, 2, end - 4), (3, 1, 1), (2, 2, 1), (0, 1, 19 - end)):
        more, state, _ = read(*part, state)
        found += more
    assert found == whole
