"""Heads by name, features from files, and the one interface on a head with content and a clock."""

import re

import numpy as np
import pytest

from mmsrec_jax.errors import UserError
from mmsrec_jax.models.heads import features, kinds
from mmsrec_jax.models.heads.sasrec import SASRecConfig
from mmsrec_jax.models.heads.sequences import seconds


def test_a_misspelt_kind_gets_the_nearest():
    with pytest.raises(UserError, match="config.head='sasrek' is not known; did you mean 'sasrec'"):
        kinds.find("sasrek")
    with pytest.raises(UserError, match="there are: sasrec"):
        kinds.find("transformer")


def test_a_config_survives_json():
    config = SASRecConfig(7, (("text", 3), ("image", 4)), length=5, dim=8)
    assert kinds.from_json(kinds.to_json(config)) == config
    settings = {"length": 9, "dropout": 0.5, "learning_rate": 1e-3}
    made = kinds.configure("sasrec", settings, 7, {})
    assert made == SASRecConfig(7, length=9, dropout=0.5)


def test_features_are_read_in_the_order_of_the_catalogue(tmp_path):
    rows = np.random.default_rng(0).normal(size=(6, 4))
    np.save(tmp_path / "text.npy", rows)
    np.save(tmp_path / "tags.npy", rows > 0)
    found = features.read(
        {"text": str(tmp_path / "text.npy"), "tags": str(tmp_path / "tags.npy")}, 6
    )
    np.testing.assert_array_equal(found["text"], rows.astype(np.float32))
    np.testing.assert_array_equal(found["tags"], (rows > 0).astype(np.float32))
    assert found["text"].dtype == np.float32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.ones((5, 3)), "5 rows, but the catalogue has 6 items"),
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
        features.read({"text": str(path)}, 6)


def test_missing_features_stop_before_anything_is_read():
    with pytest.raises(UserError, match="features.image is not set"):
        features.check({"image": ""})
    with pytest.raises(UserError, match="features.image=nowhere.npy: no such file"):
        features.check({"image": "nowhere.npy"})


def test_milliseconds_are_not_taken_for_seconds():
    np.testing.assert_array_equal(seconds(np.array([[1.4e9 + 0.7, -1]])), [[1_400_000_000, -1]])
    with pytest.raises(UserError, match="convert the column"):
        seconds(np.array([1.4e12]))
