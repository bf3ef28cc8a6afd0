"""The TFDS data sets of publishers' files: what `tfds.data_source` gives, where files come from."""

import functools
import hashlib
import http.server
import io
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import published_files as made
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from published_files import I1, I2, I3, U1, U3
from tensorflow_datasets.core import registered

import mmsrec_jax.data.published  # noqa: F401  registers the data sets
from mmsrec_jax.data.published import amazon_2014, archive, catalog, movielens
from mmsrec_jax.runtime.errors import UserError


def prepared(name: str, files: Path | None, to: Path):
    config = tfds.download.DownloadConfig(manual_dir=files and str(files), verify_ssl=False)
    return tfds.data_source(
        name, data_dir=str(to), download_and_prepare_kwargs={"download_config": config}
    )


def test_items_and_interactions_in_the_order_of_the_files(tmp_path):
    made.amazon_2014(tmp_path / "raw")
    picture = io.BytesIO()
    Image.new("RGB", (3, 2)).save(picture, "JPEG")
    (tmp_path / "raw/images").mkdir()
    (tmp_path / f"raw/images/{I1}.jpg").write_bytes(picture.getvalue())
    data = prepared("amazon_reviews_2014/Beauty", tmp_path / "raw", tmp_path / "tfds")
    assert list(data) == ["interactions", "items"]
    rows = [(row["user_id"].decode(), row["item_id"].decode(), float(row["rating"]),
             int(row["timestamp_ms"])) for row in data["interactions"]]  # fmt: skip
    assert rows[:2] == [(U1, I1, 5, 1391040000000), (U1, I3, 3, 1391040000000)] and len(rows) == 4
    first, second, third = data["items"]
    assert (first["item_id"], first["image"]) == (I1.encode(), picture.getvalue())
    assert first["text"]["name"] == [b"title", b"description", b"categories"]
    assert first["image_url"].endswith(b"31n._SY300_.jpg") and not second["image_url"]
    assert third["item_id"] == b"B000NOBODY" and np.isnan(third["rating"])  # without interactions
    assert list((tmp_path / "tfds/amazon_reviews_2014/Beauty/1.0.0").glob("*.array_record-*"))
    shutil.rmtree(tmp_path / "raw")
    source = tfds.data_source("amazon_reviews_2014/Beauty", data_dir=str(tmp_path / "tfds"))
    assert len(source["items"]) == 3  # from what was prepared
    assert "tensorflow" not in sys.modules


def test_benchmark_splits_as_published(tmp_path):
    made.amazon_2023(tmp_path / "raw")
    name = "amazon_reviews_2023/Video_Games-5core-last_out_w_his"
    data = prepared(name, tmp_path / "raw", tmp_path / "tfds")
    assert {split: len(data[split]) for split in data} == {
        "train": 1, "valid": 1, "test": 1, "items": 4,
    }  # fmt: skip
    assert list(data["test"][0]["history"]) == [I3.encode(), I1.encode()]
    assert (data["test"][0]["item_id"], data["test"][0]["user_id"]) == (I2.encode(), U3.encode())
    assert list(data["train"][0]["history"]) == []


def test_every_publisher_has_its_data_sets():
    for publisher, module in catalog.PUBLISHERS.items():
        if isinstance(module.CONFIGS, tuple):
            name = "grouplens_movielens" if publisher == "movielens" else publisher
            assert set(registered.imported_builder_cls(name).builder_configs) == set(module.CONFIGS)
            for config in module.CONFIGS:
                assert module.source(config).name == f"{publisher}/{config}"


@pytest.fixture
def server(tmp_path):
    """(folder that a local server offers, its address)."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


def test_what_is_not_in_the_manual_folder_is_downloaded(tmp_path, server, monkeypatch):
    folder, address = server
    made.amazon_2014(folder)
    monkeypatch.setattr(amazon_2014, "_FILES", address)
    data = prepared("amazon_reviews_2014/Beauty", None, tmp_path / "tfds")
    assert [len(data[split]) for split in ("interactions", "items")] == [4, 3]


def test_a_zip_is_checked_and_unpacked(tmp_path, server, monkeypatch):
    folder, address = server
    made.movielens_1m(tmp_path / "in/ml-1m")
    shutil.make_archive(str(folder / "ml-1m"), "zip", tmp_path / "in")
    monkeypatch.setattr(movielens, "_ZIPS", address)
    digest = hashlib.md5((folder / "ml-1m.zip").read_bytes()).hexdigest()
    with pytest.raises(
        UserError, match=f"its md5 is {digest} and not c4d9eecfca2ab87c1945afe12659"
    ):
        prepared("grouplens_movielens/1m", None, tmp_path / "tfds")
    monkeypatch.setitem(movielens._ZIP_DIGESTS, "ml-1m.zip", f"md5:{digest}")
    data = prepared("grouplens_movielens/1m", None, tmp_path / "tfds")
    assert [len(data[split]) for split in ("interactions", "items")] == [3, 2]


def test_a_zip_of_something_else_leaves_nothing(tmp_path):
    made.amazon_2014(tmp_path / "in")
    other = Path(shutil.make_archive(str(tmp_path / "other"), "zip", tmp_path / "in"))
    files, to = catalog.find("movielens/1m").files, tmp_path / "to"
    with pytest.raises(UserError, match="ml-1m/ratings.dat is not in it"):
        archive.unpack(other, files, to)
    with pytest.raises(UserError, match="damaged .*download it again"):
        archive.unpack(made.write(tmp_path / "cut.zip", "PK"), files, to)
    assert not to.exists()


def test_files_that_only_people_can_download_are_named(tmp_path):
    with pytest.raises(UserError, match="MicroLens-50k_pairs.csv.* is not here.*sha256:7ff8b91b"):
        prepared("microlens/50k", None, tmp_path / "tfds")
