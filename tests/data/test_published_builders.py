"""The TFDS data sets of publishers' files: what `tfds.data_source` gives, where files come from."""

import email.message
import functools
import hashlib
import http.server
import io
import shutil
import sys
import threading
import urllib.error
from pathlib import Path

import numpy as np
import published_files as made
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from published_files import I1, I2, I3, U1, U3
from tensorflow_datasets.core import registered

import mmsrec_jax
import mmsrec_jax.data.published  # registers the data sets
from configs import beauty
from mmsrec_jax.data import build
from mmsrec_jax.data.build import DataSettings
from mmsrec_jax.data.published import amazon_2014, archive, catalog, movielens
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import from_config


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


def test_tfds_load_has_the_same_examples_where_tensorflow_is(tmp_path):
    pytest.importorskip("tensorflow")
    made.amazon_2014(tmp_path / "raw")
    config = tfds.download.DownloadConfig(manual_dir=str(tmp_path / "raw"))
    name, arguments = "amazon_reviews_2014/Beauty", {"download_config": config}
    loaded = tfds.load(
        name, data_dir=str(tmp_path / "tf"), builder_kwargs={"file_format": "tfrecord"},
        download_and_prepare_kwargs=arguments,
    )  # fmt: skip
    plain = prepared(name, tmp_path / "raw", tmp_path / "tfds")
    for split in ("interactions", "items"):
        pairs = zip(tfds.as_numpy(loaded[split]), plain[split], strict=True)
        found = [[(a[k], b[k]) for k in ("user_id", "item_id", "timestamp_ms")] for a, b in pairs]
        assert found and all(a == b for row in found for a, b in row)


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


def settings(config, **changes) -> DataSettings:
    config.data.update(download=True, user_core=1, item_core=1, **changes)
    return from_config(DataSettings, config.data, "config.data")


def test_a_run_downloads_what_it_needs(tmp_path, server, monkeypatch):
    """configs/beauty.py with the source that its docstring names, into a folder not yet there."""
    folder, address = server
    made.amazon_2014(folder)
    monkeypatch.setattr(amazon_2014, "_FILES", address)
    root = tmp_path / "a/root"
    data = settings(beauty.get_config(), source="amazon_reviews_2014/Beauty", root=str(root))
    build.check(data)
    names = ["meta_Beauty.json.gz", "reviews_Beauty_5.json.gz"]
    assert sorted(path.name for path in root.iterdir()) == names
    assert all((root / name).read_bytes() == (folder / name).read_bytes() for name in names)
    assert sorted(build.read(data).dataset.catalog.ids.tolist()) == sorted([I1, I2, I3])
    monkeypatch.setattr(amazon_2014, "_FILES", "http://127.0.0.1:9/")
    build.check(data)  # all is there: nobody is asked
    (root / names[0]).unlink()
    with pytest.raises(
        UserError, match="meta_Beauty.json.gz: broken off .*refused.*tries it again"
    ):
        build.check(data)
    opened = dict(source="amazon_reviews_2014/Beauty", download=True, text_fields=())
    assert len(mmsrec_jax.open_dataset(root, **opened, user_core=1, item_core=1).catalog) == 3


def test_a_run_downloads_and_unpacks_a_zip(tmp_path, server, monkeypatch):
    folder, address = server
    made.movielens_1m(tmp_path / "in/ml-1m")
    shutil.make_archive(str(folder / "ml-1m"), "zip", tmp_path / "in")
    monkeypatch.setattr(movielens, "_ZIPS", address)
    config = beauty.get_config()
    changes = dict(source="movielens/1m", root=str(tmp_path / "root"), user_fields=("age",))
    with pytest.raises(UserError, match=f"^{address}ml-1m.zip: its md5 is .* and not c4d9eecfca2a"):
        build.check(settings(config, **changes))
    assert not list((tmp_path / "root").iterdir())
    digest = hashlib.md5((folder / "ml-1m.zip").read_bytes()).hexdigest()
    monkeypatch.setitem(movielens._ZIP_DIGESTS, "ml-1m.zip", f"md5:{digest}")
    (tmp_path / "root/posters").mkdir()
    build.check(settings(config, **changes))
    names = [
        path.relative_to(tmp_path / "root").as_posix() for path in (tmp_path / "root").rglob("*")
    ]
    assert sorted(names) == [
        "ml-1m", "ml-1m/movies.dat", "ml-1m/ratings.dat", "ml-1m/users.dat", "posters",
    ]  # fmt: skip
    assert len(build.read(settings(config, **changes)).dataset.histories.items) == 3


class _Answer(io.BytesIO):
    def __init__(self, body: bytes, **headers: str):
        super().__init__(body)
        self.headers = email.message.Message()
        for name, value in headers.items():
            self.headers[name.replace("_", "-")] = value


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (_Answer(b"abc", Content_Length="9"), "broken off .3 of 9 bytes came.; the same command"),
        (_Answer(b"<p>", Content_Type="text/html"), "a web page came .*; look at https://snap"),
        (
            urllib.error.HTTPError("", 404, "Not Found", None, None),
            "HTTP 404 Not Found; look wheth",
        ),
        (TimeoutError("timed out"), "broken off .timed out.; the same command tries it again"),
    ],
)
def test_a_download_that_fails_leaves_nothing(tmp_path, monkeypatch, answer, message):
    def opened(*_, **__):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("urllib.request.urlopen", opened)
    data = settings(beauty.get_config(), source="amazon_reviews_2014/Beauty", root=str(tmp_path))
    with pytest.raises(UserError, match=f"^http://snap.*/reviews_Beauty_5.json.gz: {message}"):
        build.check(data)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_downloaded_is_said(tmp_path):
    config = beauty.get_config()
    for changes, message in (
        ({"source": "microlens/50k"}, "microlens offers MicroLens-50k_pairs.csv on a page alone; "
         "get it there, https://github.com/westlake-repl/MicroLens .sha256:7ff8b91b.*into"),
        ({"source": "amazon_reviews_2014/Beauty", "root": "gs://a/b"}, "root=gs://a/b is in a bu"),
        ({"source": "atomic"}, "source='atomic' has no publisher; leave it out"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"config.data.download=True: .*{message}"):
            build.check(settings(config, **{"root": str(tmp_path), **changes}))


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
