"""Sequential recommenders with item content: features made by a model or given, then trained."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs import base, beauty, movielens
from mmsrec_jax import methods
from mmsrec_jax.data import build
from mmsrec_jax.hf import tiny_init
from mmsrec_jax.methods import base_model, features, sequential
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.prompts import TEMPLATES, corpus
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import from_config
from mmsrec_jax.sequential.recommender import SequentialRecommender

SMALL = dict(
    length=8,
    dim=8,
    layers=1,
    mlp_dim=8,
    dropout=0.0,
    contrast=16,
    steps=2,
    evaluate_every=2,
    batch_size=8,
    loss="bce",
)


def tiny(kind):
    config = base.get_config(kind)
    config.data.source = "toyshop"
    config.data.toyshop.update(num_users=60, num_items=40, num_groups=3)
    config[kind].update(**SMALL)
    return config


@pytest.fixture
def model_path(tmp_path, monkeypatch):
    """A directory as `config.model.path` names one, of a model with random weights."""
    path = tmp_path / "model"
    path.mkdir()
    sizes = tiny_init.TinySettings(
        hidden=16, heads=2, kv_heads=1, layers=1, intermediate=16,
        vision_hidden=16, vision_layers=1, vision_heads=1, vision_intermediate=16,
    )  # fmt: skip
    tiny_init.write_directory(path, sizes, corpus(TEMPLATES["full"]) * 4, [])

    def load(path, dtype, mesh, **_):
        return tiny_init.init(path, dtype=dtype, seed=0, mesh=mesh)

    monkeypatch.setattr(base_model.loading, "load", load)
    return path


def test_a_model_makes_the_features_that_the_recommender_reads(model_path, tmp_path, caplog):
    caplog.set_level("INFO")
    config = tiny("molar")
    config.model.update(path=str(model_path), dtype="float32")
    config.features.update(length=64, patches=256, batch_size=8, workers=0)
    config.prompts.update(fields=("title",), text_tokens=8)
    steps = ["data", "features", "molar"]
    methods.run(config, tmp_path / "run", only=steps)
    made = np.load(tmp_path / "run" / "features" / "item.npy")
    assert made.shape == (40, 16) and made.dtype == np.float32 and made.any(1).all()
    ids = pq.read_table(tmp_path / "run" / "features" / "item_ids.parquet")["id"].to_pylist()
    settings = from_config(Settings, config).data
    assert ids == build.open_built(settings, tmp_path / "run" / "data").catalog.ids.tolist()
    recommender = SequentialRecommender.load(tmp_path / "run" / "molar" / "model")
    assert recommender.config.features == (("item", 16),)
    stored = np.asarray(recommender.features["features"]["item"][...])
    np.testing.assert_allclose(stored, (made - made.mean(0)) / made.std(0), atol=1e-3)
    caplog.clear()
    methods.run(config, tmp_path / "run", only=steps)
    said = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("step features is finished") for line in said)
    assert not any("begins" in line for line in said)


def test_given_features_and_categories_are_what_the_recommender_gets(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    config = tiny("hm4sr")
    rows = np.random.default_rng(0).normal(3, 2, size=(40, 5))
    np.save(tmp_path / "text.npy", rows)
    config.hm4sr.contents = ("text",)
    config.hm4sr.features.text = str(tmp_path / "text.npy")
    experiment = sequential.Sequential(from_config(Settings, config), tmp_path, None)
    (tmp_path / "data").mkdir()
    experiment.data(tmp_path / "data")
    found = experiment.sequential_options("hm4sr")["features"]
    assert list(found) == ["text", "categories"]
    wanted = (rows - rows.mean(0)) / rows.std(0)
    np.testing.assert_allclose(found["text"], wanted, rtol=1e-4, atol=1e-5)
    names = sorted({item.category for item in experiment.dataset[0]})
    for i, item in enumerate(experiment.dataset[0]):
        np.testing.assert_array_equal(found["categories"][i], np.array(names) == item.category)

    none = np.zeros((40, 0), np.float32)
    monkeypatch.setattr(features.item_features, "categories", lambda catalog, separator: none)
    assert list(experiment.sequential_options("hm4sr")["features"]) == ["text"]
    said = [record.getMessage() for record in caplog.records]
    assert any("hm4sr: no item has a category" in line for line in said)


def test_content_that_cannot_be_had_stops_before_anything_runs(tmp_path):
    config = tiny("hm4sr")
    with pytest.raises(UserError, match=r"features.text is not set.*or a model.*config.model.path"):
        methods.run(config, tmp_path / "run")
    config.hm4sr.features.update(text="nowhere.npy", image="nowhere.npy")
    with pytest.raises(UserError, match="features.text=nowhere.npy: no such file"):
        methods.run(config, tmp_path / "run")
    config.hm4sr.contents = ("text", "sound")
    with pytest.raises(UserError, match="config.hm4sr.contents=.*must each be one of"):
        methods.run(config, tmp_path / "run")
    config.hm4sr.update(contents=("image",), features={"image": ""})
    config.use.images = False
    with pytest.raises(UserError, match="config.use.images is False"):
        methods.run(config, tmp_path / "run")
    config.hm4sr.contents = ()
    with pytest.raises(UserError, match="config.hm4sr.contents=.*name one or more"):
        methods.run(config, tmp_path / "run")
    config.hm4sr.contents = ("image",)
    config.model.path = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="config.model.path=.*no such folder"):
        methods.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_variants_of_the_configs():
    for module in (base, beauty, movielens):
        for kind in ("molar", "hm4sr"):
            config = module.get_config(kind)
            assert (config.method, config.sequential_model) == ("sequential", kind)
    assert movielens.get_config("hm4sr").hm4sr.category_separator == " "
