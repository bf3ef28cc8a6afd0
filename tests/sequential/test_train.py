"""The training loop of models: what it feeds, that it learns, stops, resumes and shards exactly."""

import dataclasses
import json
import time
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmsrec_jax.data import splits
from mmsrec_jax.data.records import Histories
from mmsrec_jax.data.sequences import before
from mmsrec_jax.evaluation import metrics, ranking
from mmsrec_jax.retrieval import similar
from mmsrec_jax.retrieval.similar import assign_folds
from mmsrec_jax.runtime import chips
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.sharding import make_mesh
from mmsrec_jax.sequential import registry, train
from mmsrec_jax.sequential.bert4rec import BERT4RecConfig
from mmsrec_jax.sequential.losses import ItemLoss
from mmsrec_jax.sequential.sasrec import SASRecConfig

ITEMS = 30
HEAD = SASRecConfig(ITEMS, length=12, dim=16, layers=1, heads=2, mlp_dim=32)


def settings(kind="sasrec", **changes):
    small = dict(
        length=12, dim=16, dropout=0.1, layers=1, batch_size=16, learning_rate=1e-2,
        weight_decay=0.01, warmup_steps=5, steps=100, evaluate_every=20, patience=3,
        validation_rows=0, loss="softmax", loss_chunk=256, log_every=10, seed=0,
    )  # fmt: skip
    if kind != "gru4rec":
        small |= dict(heads=2, mlp_dim=32)
    return registry.MODELS[kind].settings(**small | changes)


@pytest.fixture(scope="module")
def histories():
    """Everybody walks around one circle of items, from a place of their own."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 40, 150)
    circle = rng.permutation(ITEMS)
    walks = [circle[(start + np.arange(n)) % ITEMS] for start, n in enumerate(lengths)]
    return Histories.from_rows(
        np.arange(150).astype(str),
        np.repeat(np.arange(150), lengths),
        np.concatenate(walks),
        np.concatenate([np.arange(n) for n in lengths]),
    )


@pytest.fixture(scope="module")
def split(histories):
    return splits.leave_one_out(histories)


def targets_with_context(rows):
    """(context tokens of the same segment, target) of every target in packed rows."""
    found = []
    for row in rows:
        for at in np.flatnonzero(row["targets"] >= 0):
            own = row["segments"][: at + 1] == row["segments"][at]
            assert row["positions"][at] == own.sum() - 1
            found.append((tuple(row["ids"][: at + 1][own] - 1), int(row["targets"][at])))
    return found


def test_every_training_target_once_per_epoch_with_its_own_past(histories, split):
    length = 12
    packed = train.PackedSequences(histories, split.train_end, length, seed=0, multiple=16)
    wanted = []
    for user, position in split.train:
        targets = split.train_end[user] - 1  # the last window is full, so the first one is short
        first = targets % length or min(targets, length)
        start = 0 if position <= first else first + (position - first - 1) // length * length
        past = histories.of(user)[start:position]
        wanted.append((tuple(past), int(histories.of(user)[position])))
    epochs = []
    for epoch in (0, 1):
        rows = [packed.row(epoch * len(packed) + i, i) for i in range(len(packed))]
        assert sorted(targets_with_context(rows)) == sorted(wanted)
        epochs.append(np.stack([row["ids"] for row in rows]))
    assert len(packed) % 16 == 0
    assert len(packed) <= -(-len(wanted) // length) + 16
    assert (epochs[0] != epochs[1]).mean() > 0.3  # dealt anew


def test_batches_are_static_and_resume_exactly(histories, split):
    def make():
        return iter(train.batches(histories, split, HEAD, batch_size=16, seed=0))

    unbroken, first = make(), make()
    wanted = [next(unbroken) for _ in range(60)]  # several epochs
    for _ in range(25):
        next(first)
    resumed = make()
    resumed.set_state(json.loads(json.dumps(first.get_state())))
    for batch in wanted[25:]:
        got = next(resumed)
        assert all(array.shape == (16, 12) for array in got.values())
        chex.assert_trees_all_equal(got, batch)


def test_held_out_users_are_never_fed(histories, split):
    folds = assign_folds(150, 3, seed=0)
    part = train.without(split, folds == 1)
    packed = train.PackedSequences(histories, part.train_end, 12, seed=0, multiple=1)
    fed = sum(int((packed.row(i, i)["targets"] >= 0).sum()) for i in range(len(packed)))
    assert fed == sum(folds[user] != 1 for user in split.train[:, 0]) == len(part.train)
    assert not np.isin(part.validation[:, 0], np.flatnonzero(folds == 1)).any()
    np.testing.assert_array_equal(part.test, split.test)


@pytest.mark.parametrize(
    ("kind", "changes", "least"),
    [
        ("sasrec", {}, 0.99),
        ("bert4rec", dict(mask_rate=0.3, last_rate=0.2, steps=200), 0.9),
        ("gru4rec", dict(hidden=24), 0.99),
    ],
)
def test_learns_a_circle(histories, split, tmp_path, kind, changes, least):
    recommender = train.train(
        settings(kind, **changes), histories, split, num_items=ITEMS, directory=tmp_path
    )
    found = ranking.full(recommender, histories, split.test)
    assert metrics.ndcg(found.ranks, 10) > least  # popularity: 0.51
    back = train.recommender.SequentialRecommender.load(tmp_path / "model")
    np.testing.assert_array_equal(back.params["items"][...], recommender.params["items"][...])
    embedded = similar.prefix_embeddings(recommender, histories, split.test)
    unit = recommender.embed(before(histories, split.test, 12))
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    short = split.test[:, 1] <= 12  # longer ones are embedded from a window of their own
    np.testing.assert_allclose(embedded[short], unit[short], atol=1e-4)


def test_weight_decay_leaves_biases_and_norms_alone():
    shape = BERT4RecConfig(3, dim=4, heads=1, mlp_dim=4, layers=1)
    recipe = train.Recipe(shape, ItemLoss("softmax"), 1.0, 1, weight_decay=0.5)

    @jax.jit
    def decay():
        params = jax.tree.map(jnp.ones_like, train.recommender.init_params(shape, 0))
        state = train.TrainState.create(params, recipe.optimizer)
        for _ in range(2):  # the first is the warm-up's, at a rate of 0
            state = state.apply(jax.tree.map(jnp.zeros_like, params), recipe.optimizer)
        return state.params

    left = nnx.to_flat_state(decay())
    decayed = {path[-1] for path, leaf in left if (np.asarray(leaf[...]) < 1).all()}
    assert decayed == {"items", "positions", "qkv", "out", "up", "down", "transform"}


def wait_for_only(names, directory):
    for _ in range(600):
        if {path.name for path in directory.iterdir()} == names:
            return
        time.sleep(0.05)
    raise TimeoutError(sorted(directory.iterdir()))


def lines(directory):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in found]


def test_killed_and_resumed_equals_unbroken(histories, split, tmp_path, monkeypatch):
    """Every validation measures the same, so that patience has to count across the kill."""
    monkeypatch.setattr(metrics, "ndcg", lambda ranks, k: 0.5)
    options = dict(steps=60, evaluate_every=4, patience=5, log_every=4)

    def trained(directory):
        return train.train(
            settings(**options), histories, split, num_items=ITEMS, directory=directory
        )

    unbroken = trained(tmp_path / "unbroken")
    full, calls = ranking.full, []

    def dies_in_its_fourth_validation(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:  # in step 16; a killed process would not go on writing step 12
            wait_for_only({"4", "8", "12"}, tmp_path / "killed" / "checkpoints")
            raise KeyboardInterrupt
        return full(*args, **kwargs)

    monkeypatch.setattr(ranking, "full", dies_in_its_fourth_validation)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed")
    resumed = trained(tmp_path / "killed")
    assert lines(tmp_path / "killed") == lines(tmp_path / "unbroken")
    assert lines(tmp_path / "unbroken")[-1]["step"] == 24  # best at 4, five more without
    chex.assert_trees_all_equal(resumed.params, unbroken.params)


def test_best_on_validation_is_kept_not_the_last(histories, split, tmp_path, monkeypatch):
    scripted = iter([0.3, 0.7, 0.5, 0.6, 0.1])
    seen = []

    def scripted_ndcg(ranks, k):
        return next(scripted)

    full = ranking.full

    def recording(recommender, *args, **kwargs):
        seen.append(np.asarray(recommender.params["items"][...]).copy())
        return full(recommender, *args, **kwargs)

    monkeypatch.setattr(metrics, "ndcg", scripted_ndcg)
    monkeypatch.setattr(ranking, "full", recording)
    recommender = train.train(
        settings(evaluate_every=3, patience=3),
        histories,
        split,
        num_items=ITEMS,
        directory=tmp_path,
    )
    assert len(seen) == 5  # the fifth is the third without improvement
    np.testing.assert_array_equal(recommender.params["items"][...], seen[1])
    assert np.abs(seen[1] - seen[4]).max() > 1e-3


def test_full_softmax_beyond_a_quarter_of_the_memory_names_what_avoids_it():
    """16 x 12 = 192 targets: 192 x 11,184,810 items x 8 bytes are just below 16 GiB, and a device
    that does not tell its memory counts as one of 16 GiB."""
    mesh = make_mesh(2, 4, 1)
    items, fewer, more = (
        dataclasses.replace(HEAD, num_items=count)
        for count in (11_184_810, 11_184_810 // 4, 11_184_810 * 50)
    )
    advice = train.full_softmax_advice(settings(), items, None)
    assert advice == (
        "config.sasrec.loss='softmax': the logits of 11,184,810 items and their gradient need 16.0 "
        "GiB of each device's 16.0; config.sasrec.loss_chunk=48 needs a quarter for the same loss; "
        "config.sasrec.loss='sampled_softmax' needs less time too and takes "
        "config.sasrec.negatives=256 of them"
    )
    assert "\n" not in advice
    assert not train.full_softmax_advice(settings(loss_chunk=48), items, None)
    assert "loss_chunk=48 " in train.full_softmax_advice(settings(loss_chunk=49), items, None)
    assert not train.full_softmax_advice(settings(), fewer, None)
    assert not train.full_softmax_advice(settings(loss="sampled_softmax"), items, None)
    assert not train.full_softmax_advice(settings(), items, mesh)  # 24 targets each
    told = [
        types.SimpleNamespace(memory_stats=lambda limit=limit: {"bytes_limit": limit * 2**30})
        for limit in (8, 4)
    ]
    small = types.SimpleNamespace(local_devices=told, shape=mesh.shape, empty=False)
    advice = train.full_softmax_advice(settings("bert4rec"), items, small)
    assert "need 2.0 GiB of each device's 4.0; config.bert4rec.loss_chunk=12 " in advice
    assert "loss_chunk" not in train.full_softmax_advice(settings(), more, small)


def test_eight_devices_learn_what_one_learns(histories, split, tmp_path, monkeypatch, caplog):
    """BERT4Rec, whose loss sorts the places of each device and skips chunks. Each run says once
    that the full softmax needs much of so small a memory."""
    tiny = dataclasses.replace(chips.CHIPS["cpu"], hbm=1_000)
    monkeypatch.setitem(chips.CHIPS, "cpu", tiny)
    caplog.set_level("WARNING", "absl")
    options = dict(steps=6, evaluate_every=6, loss_chunk=8)
    one, many = (
        train.train(
            settings("bert4rec", **options), histories, split,
            num_items=ITEMS, directory=tmp_path / name, mesh=mesh,
        )
        for name, mesh in (("one", None), ("many", make_mesh(2, 4, 1)))
    )  # fmt: skip
    chex.assert_trees_all_close(one.params, many.params, rtol=1e-7, atol=2e-4)
    assert caplog.text.count("config.bert4rec.loss='softmax'") == 2
    with pytest.raises(UserError, match="config.sasrec.batch_size=12 does not divide over 8"):
        train.train(
            settings(batch_size=12), histories, split,
            num_items=ITEMS, directory=tmp_path / "x", mesh=make_mesh(2, 4, 1),
        )  # fmt: skip
