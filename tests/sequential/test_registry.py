"""Models by name, features from files, and the one interface on a model with content and a
clock."""

import json
import re
from dataclasses import dataclass

import content
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmsrec_jax.data import item_features, sequences, splits
from mmsrec_jax.data.records import Histories
from mmsrec_jax.data.sequences import seconds
from mmsrec_jax.evaluation import metrics, ranking
from mmsrec_jax.retrieval import similar
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.sequential import recommender as recommender_lib
from mmsrec_jax.sequential import registry, train
from mmsrec_jax.sequential.base import (
    Rows,
    SequentialConfig,
    SequentialModule,
    SequentialSettings,
    Sizes,
)
from mmsrec_jax.sequential.sasrec import SASRecConfig, SASRecSettings


def test_a_misspelt_kind_gets_the_nearest():
    with pytest.raises(
        UserError, match="config.sequential_model='sasrek' is not known; did you mean 'sasrec'"
    ):
        registry.find("sasrek")
    with pytest.raises(UserError, match="there are: sasrec, bert4rec, gru4rec"):
        registry.find("transformer")


def test_a_config_survives_json():
    config = SASRecConfig(7, (("text", 3), ("image", 4)), length=5, dim=8)
    assert registry.from_json(registry.to_json(config)) == config
    made = registry.configure(SASRecSettings(length=9, dropout=0.5, learning_rate=1.0), 7, {})
    assert made == SASRecConfig(7, length=9, dropout=0.5)


@pytest.mark.parametrize(
    ("kind", "names", "layers"),
    [
        ("sasrec", (), 1),
        ("sasrec", (), 3),
        ("gru4rec", (), 2),
        ("molar", ("item",), 2),
        ("hm4sr", ("text",), 2),
    ],
)
def test_the_last_state_is_that_of_a_pass_over_all_positions(kind, names, layers):
    model = content.module(kind, names, layers=layers)
    counts = np.array([1, 3, 7, content.LENGTH])
    rows = [content.packed(list(range(n, 2 * n)), times=[90_000 * np.arange(n)]) for n in counts]
    rows = Rows(*map(jnp.concatenate, zip(*rows, strict=True)))
    states = jax.jit(lambda: model(rows))()
    last = jax.jit(lambda: model.last(rows))()
    np.testing.assert_allclose(last, states[np.arange(4), counts - 1], rtol=1e-5, atol=1e-5)
    assert registry.MODELS[kind].module.CAUSAL


def test_features_are_read_in_the_order_of_the_catalog(tmp_path):
    rows = np.random.default_rng(0).normal(size=(6, 4))
    np.save(tmp_path / "text.npy", rows)
    np.save(tmp_path / "tags.npy", rows > 0)
    found = item_features.read(
        {"text": str(tmp_path / "text.npy"), "tags": str(tmp_path / "tags.npy")}, 6
    )
    np.testing.assert_array_equal(found["text"], rows.astype(np.float32))
    np.testing.assert_array_equal(found["tags"], (rows > 0).astype(np.float32))
    assert found["text"].dtype == np.float32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.ones((5, 3)), "5 rows, but the catalog has 6 items"),
        (np.ones(6), "not a matrix of numbers"),
        (np.full((6, 2), "a"), "not a matrix of numbers"),
        (np.where(np.arange(12).reshape(6, 2) == 7, np.nan, 1), "row 3 is not finite"),
        (np.full((6, 2), 1e300), "row 0 is not finite"),
        (b"no numpy", "cannot be read as .npy"),
    ],
)
def test_bad_features_name_file_and_row(tmp_path, content, message):
    path = tmp_path / "text.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with pytest.raises(UserError, match=rf"features.text={re.escape(str(path))}: .*{message}"):
        item_features.read({"text": str(path)}, 6)


def test_missing_features_stop_before_anything_is_read():
    with pytest.raises(UserError, match="features.image is not set"):
        item_features.check({"image": ""})
    with pytest.raises(UserError, match="features.image=nowhere.npy: no such file"):
        item_features.check({"image": "nowhere.npy"})


def test_milliseconds_are_not_taken_for_seconds():
    np.testing.assert_array_equal(seconds(np.array([[1.4e9 + 0.7, -1]])), [[1_400_000_000, -1]])
    with pytest.raises(UserError, match="convert the column"):
        seconds(np.array([1.4e12]))


@dataclass(frozen=True)
class BagSizes(Sizes):
    dim: int = 4


@dataclass(frozen=True)
class BagConfig(BagSizes, SequentialConfig):
    pass


@dataclass(frozen=True)
class BagSettings(SequentialSettings, BagSizes):
    pass


class Bag(SequentialModule):
    """Sums what a whole sequence is about, weighted by the weekday: every hook of the interface."""

    FEATURES, NO_DECAY = ("text",), ("scale",)
    SHIFTED, USES_TIMES, CAUSAL = False, True, False

    def __init__(self, config, *, rngs):
        super().__init__(config, rngs=rngs)
        width = dict(config.features)["text"]
        self.map = nnx.Param(0.1 * jax.random.normal(rngs.params(), (width, config.dim)))
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, rows, key=None):
        weekday = 1 + rows.times // 86400 % 7
        x = self.table()[jnp.maximum(rows.ids - 1, 0)] * weekday[..., None]
        same = rows.segments[:, :, None] == rows.segments[:, None, :]
        return (same & (rows.ids > 0)[:, None]) @ x * self.scale[...]

    def table(self):
        return self.features["text"][...] @ self.map[...]

    def bias(self):
        return self.features["text"][...][:, 0]

    def loss(self, rows, key, item_loss):
        loss = item_loss(self(rows), self.table(), rows.ids - 1, key, self.bias())
        weight = jnp.square(self.scale[...])
        return loss + weight, {"weight": weight}


@pytest.fixture
def bag(monkeypatch):
    kind = registry.SequentialModel("bag", BagSettings, BagConfig, Bag)
    monkeypatch.setitem(registry.MODELS, "bag", kind)


@pytest.fixture(scope="module")
def histories():
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 12, 30)
    return Histories.from_rows(
        np.arange(30).astype(str),
        np.repeat(np.arange(30), lengths),
        rng.integers(0, 9, lengths.sum()),
        1.4e9 + 86400 * rng.integers(0, 50, lengths.sum()),
    )


def test_a_model_with_content_clock_and_a_loss_of_its_own(bag, histories, tmp_path):
    split = splits.leave_one_out(histories)
    text = np.random.default_rng(1).normal(size=(9, 3)).astype(np.float32)
    settings = BagSettings(
        length=6, dim=4, loss="softmax", loss_chunk=64, learning_rate=1e-2, warmup_steps=1,
        weight_decay=0.0, batch_size=4, steps=4, evaluate_every=2, patience=9, log_every=1,
    )  # fmt: skip
    recommender = train.train(
        settings, histories, split,
        num_items=9, directory=tmp_path, features={"text": text},
    )  # fmt: skip
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    weights = [line["weight"] for line in logged if "weight" in line]
    assert weights[0] == 1 and weights[-1] < 1  # what `loss` returns is what is minimized
    np.testing.assert_array_equal(
        recommender.features["features"]["text"][...], text
    )  # never trained

    past = sequences.before(histories, split.test, 6)
    times = sequences.times_before(histories, split.test, 6)
    kernel, scale = (np.asarray(recommender.params[name][...]) for name in ("map", "scale"))
    weekday = np.where(past >= 0, 1 + times // 86400 % 7, 0)
    wanted = scale * np.einsum("bl,bld->bd", weekday, (text @ kernel)[past])
    np.testing.assert_allclose(recommender.embed(past, times), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        recommender.scores(past, times),
        wanted @ (text @ kernel).T + text[:, 0],
        rtol=1e-4,
        atol=1e-4,
    )
    back = recommender_lib.SequentialRecommender.load(tmp_path / "model")
    assert back.config == recommender.config and back.name == "bag"
    np.testing.assert_array_equal(back.scores(past, times), recommender.scores(past, times))
    assert metrics.ndcg(ranking.full(recommender, histories, split.test).ranks, 9) > 0

    embedded = similar.prefix_embeddings(recommender, histories, split.test)
    unit = wanted / np.linalg.norm(wanted, axis=1)[:, None]
    np.testing.assert_allclose(embedded, unit, atol=1e-4)


def test_rows_of_a_model_that_masks_hold_every_training_item_and_its_time(bag, histories):
    split = splits.leave_one_out(histories)
    config = registry.configure(BagSettings(length=6), 9, {"text": np.zeros((9, 3))})
    stream = iter(train.batches(histories, split, config, batch_size=1, seed=0))
    count = len(train.PackedSequences(
        histories, split.train_end, 6, seed=0, multiple=1, shifted=False
    ))  # fmt: skip
    fed = []
    for _ in range(count):
        row = {name: array[0] for name, array in next(stream).items()}
        assert (row["targets"] == -1).all()
        fed += zip(row["ids"][row["ids"] > 0] - 1, row["times"][row["ids"] > 0], strict=True)
    wanted = []
    for user, end in enumerate(split.train_end):
        if end > 1:
            wanted += zip(histories.of(user)[:end], histories.times(user)[:end], strict=True)
    assert sorted(fed) == sorted(wanted)
