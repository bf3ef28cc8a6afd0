import io
import json
import pickle
import shutil
import subprocess
import sys

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import shuffle

from mmsrec_jax.data import store
from mmsrec_jax.data.records import Histories, Item
from mmsrec_jax.runtime.errors import UserError


def picture(value: int, format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(stream, format)
    return stream.getvalue()


ITEMS = [
    Item("plain", {"title": "Shoe", "brand": "X"}, picture(10), "shoes", {"colour": "red"}),
    Item("no image", {"title": "Sock"}),
    Item("日本-é-🙂", {"title": "Ünïcödé \u2028 \t x"}, picture(20), None, {}),
    Item("no text", {}, picture(30, "JPEG"), "misc"),
]
# Not a float32 among them: at this size those are 128 s apart.
TIMES = [1260759108.25, 1260759109.5, 1260759110.0]
HISTORIES = Histories(["ü", "b", "c"], [0, 2, 2, 3], [3, 0, 2], TIMES, [0.5, 5, 3])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    directory = tmp_path_factory.mktemp("store") / "data"
    return directory, store.write(directory, ITEMS, HISTORIES)


@pytest.fixture
def copied(built, tmp_path):
    return shutil.copytree(built[0], tmp_path / "copy")


def test_round_trip(built):
    directory, written = built
    catalog, histories = store.open(directory)
    assert list(catalog) == ITEMS
    assert catalog.ids.tolist() == [item.id for item in ITEMS]
    assert catalog.has_image.tolist() == [True, False, True, True]
    assert catalog.image(0).tolist() == np.full((4, 6, 3), 10).tolist()
    assert catalog.image(1) is None
    for name in ("users", "offsets", "items", "timestamps", "ratings"):
        expected, found = getattr(HISTORIES, name), getattr(histories, name)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    assert histories.clock
    assert (written.items, written.images, written.categories) == (4, 3, 2)
    assert written.text == {"title": 3, "brand": 1} and written.attributes == {"colour": 1}
    assert [path.name for path in directory.parent.iterdir()] == ["data"]


def test_what_is_larger_than_the_buffer_of_tfds_is_written_without_tensorflow(
    built, tmp_path, monkeypatch
):
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1)
    written = store.write(tmp_path / "store", ITEMS, HISTORIES)
    assert written.fingerprint == built[1].fingerprint


def test_tfds_reads_the_same_files(built):
    items = tfds.data_source("items", data_dir=str(built[0]), split="train")
    assert [example["id"].decode() for example in items] == [item.id for item in ITEMS]
    histories = tfds.data_source("histories", data_dir=str(built[0]), split="train")
    assert histories[0]["timestamps"].tolist() == TIMES[:2]


def test_histories_without_ratings_or_clock(tmp_path):
    bare = Histories(["a"], [0, 2], [0, 3], [0, 1], clock=False)
    store.write(tmp_path / "data", ITEMS, bare)
    _, histories = store.open(tmp_path / "data")
    assert histories.ratings is None and not histories.clock


def test_corrupt_images_are_counted_and_their_items_kept(tmp_path):
    whole = picture(40, "JPEG")
    items = [*ITEMS, Item("cut", {"title": "t"}, whole[: len(whole) // 2]), Item("junk", {}, b"?")]
    written = store.write(tmp_path / "d", items, HISTORIES, image_name=lambda id: f"dir/{id}.jpg")
    assert [name for name, _ in written.corrupt_images] == ["dir/cut.jpg", "dir/junk.jpg"]
    assert all(reason for _, reason in written.corrupt_images)
    catalog, _ = store.open(tmp_path / "d")
    assert catalog[4] == Item("cut", {"title": "t"})
    assert catalog.has_image.tolist() == [True, False, True, True, False, False]
    assert written.images == 3


def test_fingerprint_follows_the_content(built, tmp_path):
    directory, written = built
    assert store.fingerprint(directory) == written.fingerprint
    seen = {written.fingerprint}
    other_image = [*ITEMS[:3], Item("no text", {}, picture(31, "JPEG"), "misc")]
    other_order = Histories(["ü", "b", "c"], [0, 2, 2, 3], [0, 3, 2], TIMES, [0.5, 5, 3])
    other_time = Histories(HISTORIES.users, HISTORIES.offsets, HISTORIES.items, [0, 1, 2])
    for items, histories in (
        (ITEMS, HISTORIES),
        (other_image, HISTORIES),
        (ITEMS, other_order),
        (ITEMS, other_time),
    ):
        seen.add(store.write(tmp_path / "d", items, histories).fingerprint)
    assert len(seen) == 4  # the first of the four is the same content again


def test_catalog_pickles_small_and_reads_on(built):
    catalog, _ = store.open(built[0])
    assert catalog[0] == ITEMS[0] and catalog.index["no image"] == 1
    data = pickle.dumps(catalog)
    assert len(data) < 2000
    assert list(pickle.loads(data)) == ITEMS


def item_summary(item: Item) -> np.ndarray:
    return np.array([len(item.id), len(item.image or b""), len(item.text)])


def test_grain_reads_by_index_in_worker_processes(built):
    catalog, _ = store.open(built[0])
    assert catalog[0] == ITEMS[0]  # opened here: the workers must open their own
    dataset = grain.MapDataset.source(catalog).shuffle(seed=0).map(item_summary)
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    workers = grain.MultiprocessingOptions(num_workers=2, per_worker_buffer_size=1)
    found = sorted(row.tolist() for row in dataset.mp_prefetch(workers))
    assert found == sorted(item_summary(item).tolist() for item in ITEMS)


def test_no_tensorflow_and_no_jax_for_reading():
    code = (
        "import sys; from mmsrec_jax.data import store, atomic, splits, filters;"
        "print('tensorflow' in sys.modules, 'jax' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_missing_store(tmp_path):
    with pytest.raises(UserError, match="absent: no prepared data set here; build it again"):
        store.open(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no manifest.json, not a complete store"):
        store.open(tmp_path / "empty")


@pytest.mark.parametrize("name", ["items", "histories"])
def test_truncated_array_record(copied, name):
    [file] = (copied / name).glob("1.0.0/*array_record*")
    data = file.read_bytes()
    file.write_bytes(data[:-100])
    message = f"array_record.*: {len(data) - 100} bytes instead of {len(data)}; copy the store"
    with pytest.raises(UserError, match=message):
        store.open(copied)
    with pytest.raises(UserError, match="copy the store again or build it again"):
        store.fingerprint(copied)
    file.unlink()
    with pytest.raises(UserError, match="missing"):
        store.open(copied)


def test_damaged_or_unknown_manifest(copied):
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps({**manifest, "format": 0}))
    with pytest.raises(UserError, match="store format 0, this version reads 1"):
        store.open(copied)
    (copied / "manifest.json").write_text('{"form')
    with pytest.raises(UserError, match="damaged"):
        store.open(copied)


def test_a_write_that_fails_leaves_the_old_store_and_no_debris(copied):
    def dying():
        yield ITEMS[0]
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        store.write(copied, dying(), HISTORIES)
    assert list(store.open(copied)[0]) == ITEMS
    assert [path.name for path in copied.parent.iterdir()] == ["copy"]


def test_an_interrupted_write_is_named_and_repaired_by_the_next(tmp_path):
    code = f"""
import os, signal
from mmsrec_jax.data import store
from mmsrec_jax.data.records import Histories, Item
def items():
    yield Item("a")
    os.kill(os.getpid(), signal.SIGKILL)
store.write({str(tmp_path / "data")!r}, items(), Histories(["u"], [0, 1], [0], [0]))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -9
    with pytest.raises(UserError, match="interrupted; build it again"):
        store.open(tmp_path / "data")
    store.write(tmp_path / "data", ITEMS, HISTORIES)
    assert list(store.open(tmp_path / "data")[0]) == ITEMS
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_is_not_written(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty and not a store"):
        store.write(tmp_path / "precious", ITEMS, HISTORIES)
    with pytest.raises(UserError, match="'no image' occurs 2 times"):
        store.write(tmp_path / "d", [*ITEMS, ITEMS[1]], HISTORIES)
    with pytest.raises(UserError, match="no interactions to store"):
        store.write(tmp_path / "d", ITEMS, Histories([], [0], [], []))
    with pytest.raises(ValueError, match="outside 0..1"):
        store.write(tmp_path / "d", ITEMS[:2], HISTORIES)
    assert not (tmp_path / "d").exists()
