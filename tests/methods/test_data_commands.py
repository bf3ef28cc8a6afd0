"""Pictures of a publisher's data: fetched, and seen by what looks at it."""

import published_files as made
import pytest
from image_server import running
from published_files import I1

from configs import base
from mmsrec_jax.data.fetching.fetch import FetchSettings
from mmsrec_jax.methods import data_commands
from mmsrec_jax.runtime.errors import UserError


def config_of(root, **data):
    config = base.get_config("sasrec")
    config.data.update(root=str(root), user_core=1, item_core=1, **data)
    return config


def test_pictures_of_a_publisher(tmp_path):
    published = "http://ecx.images-amazon.com/images/I/31n._SY300_.jpg"
    config = config_of(tmp_path, source="amazon_reviews_2014/Beauty")
    with running() as server:
        made.amazon_2014(tmp_path)
        assert published in made.META_2014
        meta = made.META_2014.replace(published, f"{server.url}/good")
        made.write(tmp_path / "meta_Beauty.json.gz", meta)
        wanted, folder = data_commands.published_pictures(config)
        settings = FetchSettings(private_hosts=("127.0.0.1",))
        found = data_commands.fetch(wanted, folder, settings)
    assert (found.items, found.stored) == (1, 1)
    assert (tmp_path / "images" / f"{I1}.jpg").exists()
    look = data_commands.Look(config)
    seen = look.stats(tokenizer="", users=2, seed=0)
    has = next(table for table in seen.tables if table.title == "what items have").json()
    assert has["picture"]["items"] == 1
    assert [f.what for f in look.check().findings.problems] == [
        "the split has no validation targets", "the split has no test targets",
    ]  # fmt: skip


def test_pictures_are_fetched_into_a_bucket(bucket_server, machine, tmp_path):
    """Another machine goes on with what is there; data in a bucket has its pictures beside it."""
    made.amazon_2014(tmp_path)
    settings = FetchSettings(private_hosts=("127.0.0.1",))
    with running() as server:
        published = "http://ecx.images-amazon.com/images/I/31n._SY300_.jpg"
        meta = made.META_2014.replace(published, f"{server.url}/good").encode()
        bucket_server.put("lab", "raw/meta_Beauty.json", meta)
        reviews = (tmp_path / "reviews_Beauty_5.json.gz").read_bytes()
        bucket_server.put("lab", "raw/reviews_Beauty_5.json.gz", reviews)
        source = dict(source="amazon_reviews_2014/Beauty", user_core=1, item_core=1)
        config = base.get_config("sasrec")
        config.data.update(root="gs://lab/raw", **source)
        wanted, images = data_commands.published_pictures(config)
        found = data_commands.fetch(wanted, images, settings)
        assert (found.folder, found.stored) == ("gs://lab/raw/images", 1)
        names = [f"{I1}.jpg", "fetch/failures.jsonl", "fetch/journal.jsonl"]
        assert bucket_server.names("lab", "raw/images") == [f"raw/images/{name}" for name in names]
        machine("another")
        again = data_commands.fetch(wanted, images, settings)
        assert (again.stored, again.stored_before) == (0, 1) and server.asked["/good"] == 1
    look = data_commands.Look(config)
    assert "gs://" not in again.text().replace(images, "")
    assert look._prepared.dataset.catalog.has_image.sum() == 1


def test_data_without_urls_is_refused(tmp_path):
    with pytest.raises(UserError, match="names no URLs; give a list with --urls"):
        data_commands.published_pictures(config_of(tmp_path))
