"""HM4SR: both mixtures by loops over tokens and experts, the clock, and each auxiliary loss."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from content import FEATURES, ITEMS, LENGTH, module, packed
from test_contrastive import by_loops

from mmsrec_jax.sequential.losses import ItemLoss

NAMES = ("text", "image", "categories")
TIMES = [[1_400_000_000, 1_400_000_100, 1_400_100_000], [900_000_000, 900_000_000, 950_000_000]]
ROWS = packed([3, 1, 4], [1, 5, 9], times=TIMES)
OPTIONS = dict(experts=3, interval_buckets=10, placeholder_rate=1.0)


@pytest.fixture(scope="module")
def run():
    """All that the model says of rows, in numpy, from one program."""
    recommender = module("hm4sr", NAMES, **OPTIONS)

    @jax.jit
    def compiled(rows):
        tables, time = recommender._tables(), recommender.time(rows)
        x = recommender._inputs(tables, time, rows)
        return dict(
            tables=tables,
            time=time,
            inputs=x,
            gates=recommender.interactive_gates(tables[:, rows.ids - 1]),
            time_gates=recommender.temporal_gates(time),
            loss=recommender.loss(rows, jax.random.key(0), ItemLoss("softmax")),
            table=recommender.table(),
            # At a rate of 1 each item gives way, so that only the times are left of the history.
            replaced=recommender._encode(
                recommender._with_placeholders(x[1:], time, rows.ids >= 0), rows, None, (1, 2)
            ),
            placed=recommender._with_placeholders(x[1:], time, rows.positions == 2),
            states=recommender(rows),
        )

    return lambda rows: types.SimpleNamespace(**jax.tree.map(np.asarray, compiled(rows)))


@pytest.fixture(scope="module")
def said(run):
    return run(ROWS)


@pytest.fixture(scope="module")
def weights():
    """Its weights by name, in numpy."""
    recommender = module("hm4sr", NAMES, **OPTIONS)
    names = (
        "items positions experts expert_bias gates gate_bias share intervals time_scale time_bias "
        "time_gate time_gate_bias time_experts placeholders placeholder_bias category_kernel "
        "category_bias"
    )
    return types.SimpleNamespace(
        **{n: np.asarray(getattr(recommender, n)[...]) for n in names.split()}
    )


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def time_embedding(w, seconds, before):
    """One token's: as in the authors' code, but in days."""
    bucket = 0 if before is None else int(np.floor(10 * np.log2(seconds - before + 1)))
    slower = 1 / 10000 ** (np.arange(8) / 8)
    phase = (np.float32(seconds) / 86400 * w.time_scale + w.time_bias) * slower
    return np.concatenate([w.intervals[bucket], np.cos(phase)])


def test_inputs_are_the_two_mixtures_of_the_paper(said, weights):
    w = weights
    for at in range(6):
        item, place = int(ROWS.ids[0, at]) - 1, int(ROWS.positions[0, at])
        before = None if place == 0 else int(ROWS.times[0, at - 1])
        x = [table[item] + w.positions[place] for table in said.tables]
        experts = [
            np.concatenate(x) @ expert + bias
            for expert, bias in zip(w.experts, w.expert_bias, strict=True)
        ]
        heard = []
        for s in range(3):
            gate = softmax(x[s] @ w.gates[s] + w.gate_bias[s])
            own = sum(g * e[8 * s : 8 * s + 8] for g, e in zip(gate, experts, strict=True))
            heard.append(x[s] + w.share[s] * own)
        time = time_embedding(w, int(ROWS.times[0, at]), before)
        gate = softmax(time @ w.time_gate + w.time_gate_bias)
        scale = sum(g * e for g, e in zip(gate, w.time_experts, strict=True))
        wanted = (np.concatenate(heard) * scale).reshape(3, 8)
        np.testing.assert_allclose(said.inputs[:, 0, at], wanted, rtol=2e-3, atol=2e-3)


def test_gates_are_shares_and_the_temporal_ones_follow_the_interval(run, said):
    np.testing.assert_allclose(said.gates.sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(said.time_gates.sum(-1), 1, rtol=1e-5)
    later = run(ROWS._replace(times=ROWS.times.at[0, 1].add(50_000)))
    changed = np.abs(later.time_gates - said.time_gates)[0].max(-1) > 1e-4
    np.testing.assert_array_equal(changed[:6], [False, True, True, False, False, False])


def test_a_shift_of_all_times_moves_the_clock_but_no_interval(run, said):
    before, after = said.time[0, :6], run(ROWS._replace(times=ROWS.times + 40 * 86400)).time[0, :6]
    np.testing.assert_array_equal(before[:, :8], after[:, :8])
    assert np.abs(before - after)[:, 8:].max(-1).min() > 0.01
    # Two items in one second are as far apart as a first item is from nothing.
    np.testing.assert_array_equal(before[4, :8], before[3, :8])


def test_without_a_clock_every_item_but_the_first_has_one_mixture(run):
    gates = run(ROWS._replace(times=ROWS.positions)).time_gates[0]
    np.testing.assert_allclose(gates[1], gates[2], atol=1e-3)
    assert np.abs(gates[0] - gates[1]).max() > 1e-2


def test_padding_in_time_does_no_harm(run, said):
    unknown = run(ROWS._replace(times=jnp.where(ROWS.ids > 0, ROWS.times, -1)))
    np.testing.assert_array_equal(unknown.states[0, :6], said.states[0, :6])


def test_each_part_of_the_loss_by_loops(said, weights):
    loss, parts = said.loss
    states = said.states.astype(np.float64)[0, :6]
    targets = np.asarray(ROWS.targets[0, :6])
    logits = states @ said.table.T
    nats = np.log(np.exp(logits).sum(1)) - logits[np.arange(6), targets]
    np.testing.assert_allclose(parts["items"], nats.mean(), rtol=1e-4)

    known, other_target = np.ones(6, bool), targets[:, None] != targets
    wanted = by_loops(states[:, :8], weights.items[1 + targets], other_target, known, 0.2)
    np.testing.assert_allclose(parts["id_contrast"], wanted, rtol=1e-4)

    labels, items = FEATURES["categories"], np.asarray(ROWS.ids[0, :6]) - 1
    items = items[labels[items].any(1)]
    every = np.concatenate(said.tables, -1)
    logits = every[items] @ weights.category_kernel + weights.category_bias
    chance = 1 / (1 + np.exp(-logits))
    right = np.where(labels[items] > 0, chance, 1 - chance)
    np.testing.assert_allclose(parts["category"], -np.log(right).mean(), rtol=1e-4)

    sequence = np.array([1, 1, 1, 2, 2, 2])
    rivals = other_target & (sequence[:, None] != sequence)
    wanted = np.mean(
        [
            by_loops(states[:, 8 * s : 8 * s + 8], said.replaced[s - 1][0, :6], rivals, known, 1.0)
            for s in (1, 2)
        ]
    )
    np.testing.assert_allclose(parts["placeholder_contrast"], wanted, rtol=1e-4)
    np.testing.assert_allclose(loss, sum(parts.values()), rtol=1e-6)


def test_placeholders_are_made_of_the_time_where_an_item_gives_way(said, weights):
    hidden = np.asarray(ROWS.positions[0]) == 2
    np.testing.assert_array_equal(said.placed[:, 0, ~hidden], said.inputs[1:, 0, ~hidden])
    for s in (0, 1):
        made = said.time[0, 2] @ weights.placeholders[s] + weights.placeholder_bias[s]
        np.testing.assert_allclose(said.placed[s, 0, 2], made, rtol=1e-4, atol=1e-5)


def test_scores_are_the_sum_over_streams_and_one_content_is_enough():
    recommender = module("hm4sr", ("text",))

    @jax.jit
    def compiled(rows):
        _, parts = recommender.loss(rows, jax.random.key(0), ItemLoss("softmax"))
        return recommender(rows), recommender.table(), recommender._tables(), parts

    states, table, tables, parts = jax.tree.map(np.asarray, compiled(ROWS))
    assert table.shape == (ITEMS, 16) and "category" not in parts
    by_stream = sum(states.reshape(LENGTH, 2, 8)[:, s] @ tables[s].T for s in (0, 1))
    np.testing.assert_allclose(states[0] @ table.T, by_stream, rtol=1e-4, atol=1e-4)
