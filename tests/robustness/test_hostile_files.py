"""Data files, images and features that would hang, overflow, or be mistaken for something else."""

import gzip
import io
import json
import os
import struct
import zlib
from pathlib import Path

import hostile
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmsrec_jax.data import atomic, images, item_features, item_lines, store
from mmsrec_jax.data.ids import did_you_mean
from mmsrec_jax.evaluation.comparison import external
from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.errors import UserError

HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"


def shop(folder: Path, rows: str = "u\ta\t1\n", item: str | None = None) -> Path:
    root = folder / "shop"
    root.mkdir(parents=True)
    (root / "shop.inter").write_bytes((HEADER + rows).encode())
    if item is not None:
        (root / "shop.item").write_text(item)
    return root


def picture(path: Path, format: str = "PNG") -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 3), "red").save(path, format)
    return path


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_outside(path: Path) -> None:
    path.symlink_to(picture(path.parents[2] / "elsewhere.png"))


def make_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


NOT_FILES = {
    make_fifo: "is a FIFO",
    make_endless: "is a device",
    Path.mkdir: "is a folder",
    make_outside: "leads out of the folder",
    make_dangling: "cannot be read (No such file or directory)",
}


@pytest.mark.parametrize("make", NOT_FILES, ids=lambda make: make.__name__)
def test_only_regular_files_of_the_folder_are_opened(make, tmp_path):
    """Nothing waits for a FIFO, fills memory from a device or follows a link out of the data."""
    said = NOT_FILES[make]
    root = shop(tmp_path)
    image = root / "images" / "a.png"
    picture(root / "images" / "b.png")
    make(image)
    with hostile.refused(str(image), said, seconds=5):
        atomic.read(root)
    for name in ("shop.item", "shop.inter"):
        path = root / name
        path.unlink(missing_ok=True)
        make(path)
        with hostile.refused(str(path), said, seconds=5):
            atomic.read(root)
    lines = tmp_path / "new" / "items.jsonl"
    lines.parent.mkdir()
    lines.write_text(json.dumps({"id": "n", "title": "x", "image": "n.png"}))
    make(lines.parent / "n.png")
    with hostile.refused("items.jsonl, line 1", "n.png", said, seconds=5):
        item_lines.read(lines)


def test_links_inside_the_folder_are_followed(tmp_path):
    root = shop(tmp_path)
    picture(root / "images" / "b.png")
    (root / "images" / "a.png").symlink_to("b.png")
    items, *_ = atomic.read(root)
    assert items[0].image == (root / "images" / "b.png").read_bytes()


def test_a_file_that_changes_its_kind_after_it_was_listed(tmp_path):
    root = shop(tmp_path)
    image = picture(root / "images" / "a.png")
    items, *_ = atomic.read(root)
    image.unlink()
    os.mkfifo(image)
    with hostile.refused(str(image), "is a FIFO", seconds=5):
        items[0]


def test_a_picture_elsewhere(tmp_path):
    outside = picture(tmp_path / "secret.png")
    folder = tmp_path / "new"
    folder.mkdir()
    for name in ("../secret.png", str(outside), "../new/../secret.png", "n\0.png", "n" * 5000):
        (folder / "i.jsonl").write_text(json.dumps({"id": "n", "title": "x", "image": name}))
        with hostile.refused("i.jsonl, line 1: no picture"):
            item_lines.read(folder / "i.jsonl")


def test_images_that_are_no_folder(tmp_path):
    root = shop(tmp_path)
    (root / "images").write_text("x")
    with hostile.refused(str(root / "images"), "cannot be listed (Not a directory)"):
        atomic.read(root)
    (root / "images").unlink()
    (root / "images").symlink_to(tmp_path)
    with hostile.refused("config.data.images_root", str(root / "images")):
        atomic.read(root)


# --- images --------------------------------------------------------------------------------------


def encoded(format: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, format)
    return stream.getvalue()


@pytest.mark.parametrize("format", ["EPS", "TIFF", "BMP", "PPM", "ICO", "PCX", "PDF", "SGI"])
def test_formats_that_are_not_decoded(format, monkeypatch):
    """EPS would start Ghostscript."""
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("a program was started"))
    for read in (images.decode, images.suffix):
        with pytest.raises(images.ImageError, match="of no known image format"):
            read(encoded(format))


def giant_png(width: int, height: int) -> bytes:
    """Of one color, one bit a pixel: a few KB a million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(13_000, 13_000), (20_000, 20_000), (2**31 - 1, 1)])
def test_a_small_file_of_many_pixels(size):
    data = giant_png(*size if size[1] > 1 else (100, 1))
    if size[1] == 1:
        head = struct.pack(">IIBBBBB", *size, 1, 0, 0, 0, 0)
        data = data[:16] + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + data[33:]
    assert len(data) < 600_000
    for read in (images.decode, images.suffix):
        with pytest.raises(images.ImageError, match=r"pixels|exceeds limit"):
            read(data)


def test_the_store_leaves_out_and_names_what_it_cannot_decode(tmp_path):
    root = shop(tmp_path, "u\ta\t1\nu\tb\t2\nu\tc\t3\n")
    picture(root / "images" / "a.png")
    (root / "images" / "b.jpg").write_bytes(encoded("EPS"))
    (root / "images" / "c.png").write_bytes(giant_png(13_000, 13_000))
    items, histories, _ = atomic.read(root)
    written = store.write(tmp_path / "store", items, histories, image_name=items.image_name)
    assert written.images == 1
    names, reasons = zip(*written.corrupt_images, strict=True)
    assert [Path(name).name for name in names] == ["b.jpg", "c.png"]
    assert "no known image format" in reasons[0] and "13000 x 13000 pixels" in reasons[1]


# --- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell",
    [" 5", "5 ", "1_000", "１２", "٣", "1,5", "0x10", "1e999", "NaN", "inf", "--1", "", "5\0"],
)
def test_numbers_that_are_not_plain(cell, tmp_path):
    root = shop(tmp_path, f"u\ta\t1\nu\tb\t{cell}\n")
    with hostile.refused("shop.inter:3: timestamp", "is not a number"):
        atomic.read(root)


@pytest.mark.parametrize("rows, said", [
    ("u\ta\t1\nv\0\ta\t2\n", "shop.inter:3: user_id 'v\\x00' holds a NUL character"),
    ("u\ta\0b\t1\n", "shop.inter:2: item_id 'a\\x00b' holds a NUL character"),
    ("u\ta\t1\n" * 3 + "w" * 300 + "\ta\t1\n", "shop.inter:5: user_id 'www"),
    ("u\t" + "a" * 900_000 + "\t1\n", "shop.inter:2: item_id 'aaa"),
    ("u\ta\t1\nu\t" + "a" * 3_000_000 + "\t1\n", "shop.inter:3: longer than 1,048,576 bytes"),
])  # fmt: skip
def test_ids(rows, said, tmp_path):
    with hostile.refused(said):
        atomic.read(shop(tmp_path, rows))


def test_a_field_and_a_header_without_end(tmp_path):
    item = "item_id:token\ttitle:token_seq\na\tx\nb\t" + "y" * 50_000_000 + "\n"
    with hostile.refused("shop.item:3: longer than"):
        atomic.read(shop(tmp_path / "1", item=item))
    with hostile.refused("shop.item:1: longer than"):
        atomic.read(shop(tmp_path / "2", item="item_id:token\t" + "y" * 50_000_000))


def test_an_unknown_id_of_any_length_is_looked_for_in_no_time():
    assert did_you_mean("x" * 3_000_000, np.array(["u1", "u2"] * 5_000)) == ""


def test_both_a_file_and_its_archive(tmp_path):
    root = shop(tmp_path, item="item_id:token\na\n")
    (root / "shop.inter.gz").write_bytes(gzip.compress(HEADER.encode() + b"u\tb\t1\n"))
    with hostile.refused("both shop.inter and shop.inter.gz are here; remove one"):
        atomic.read(root)
    (root / "shop.inter").unlink()
    (root / "shop.item.gz").write_bytes(b"x")
    with hostile.refused("both shop.item and shop.item.gz are here"):
        atomic.read(root)


@pytest.mark.parametrize("content", [b"u\ta\t1\n", b"x" * 1000, b"\n", b"\0"])
def test_an_archive_that_unpacks_to_far_more(content, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_ALWAYS_UNPACKED", 1 << 22)
    root = shop(tmp_path)
    (root / "shop.inter").unlink()
    with gzip.open(root / "shop.inter.gz", "wb") as file:
        file.write(HEADER.encode() + b"u\ta\t1\n")
        for _ in range(64):
            file.write(content * (2**20 // len(content)))
    with hostile.refused(str(root / "shop.inter.gz")):
        atomic.read(root)


# --- lines of JSON, features, tables of others ---------------------------------------------------


@pytest.mark.parametrize("line, said", [
    ('{"id": "a", "title": NaN}', "NaN is no number"),
    ('{"id": "a", "title": ' + "9" * 5000 + "}", "not valid JSON"),
    ("[" * 100_000, "nested too deeply"),
    ('{"id": "\\ud800", "title": "x"}', "half a character"),
    ('{"id": "a", "title": "' + "x" * 2_000_000 + '"}', "longer than"),
    ('{"id": "' + "a" * 300 + '", "title": "x"}', "256 characters"),
    ('{"id": "a\\u0000", "title": "x"}', "NUL character"),
    ('{"id": "a", "title": ["\x1b[2J"]}', "not valid JSON"),
])  # fmt: skip
def test_lines_of_items(line, said, tmp_path):
    path = tmp_path / "new.jsonl"
    path.write_text('{"id": "first", "title": "one\u2028line"}\n' + line + "\n")
    with hostile.refused(f"{path}, line 2", said):
        item_lines.read(path)
    path.write_bytes(b'{"id": "first", "title": "x"}\n\n{"id": "\xff"}\n')
    with hostile.refused(f"{path}, line 3: not UTF-8"):
        item_lines.read(path)


def test_features(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((2, 3), np.float32))
    good = path.read_bytes()
    for damaged in (
        good.replace(b"(2, 3)", b"(2, 9)"),
        good.replace(b"(2, 3), }", b"(2, 10**9)}"),
        good.replace(b"<f4", b"|O8"),
        good.replace(b"'shape'", b"'shppe'"),
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
        b"",
    ):
        path.write_bytes(damaged)
        with hostile.refused("features.x", str(path)):
            item_features.read({"x": str(path)}, 2)
    path.write_bytes(good.replace(b"(2, 3), }       ", b"(2, 3000000000)}"))
    with hostile.refused("features.x", str(path), seconds=5):
        item_features.read({"x": str(path)}, 2)


def test_scores_of_others(tmp_path):
    known = np.array(["u0", "u1"]), np.array(["a", "b"])
    os.mkfifo(tmp_path / "x.csv")
    with hostile.refused("x.csv", "is a FIFO", seconds=5):
        external.read(tmp_path / "x.csv", *known)
    path = tmp_path / "y.csv"
    for rows, said in (
        ("u0,a, 5\n", "y.csv, row 1: the score ' 5' is no number"),
        ("u0,a,1\nu1,a,1_0\n", "y.csv, row 2: the score '1_0' is no number"),
        ("u0,a,1\nu1\x1b[2J,a,1\n", "y.csv, row 2: user 'u1\\x1b[2J' is not"),
    ):
        path.write_text("user,item,score\n" + rows)
        with hostile.refused(said):
            external.read(path, *known)
    path.write_text("user,user,item,score\nu0,u0,a,1\n")
    with hostile.refused("column 'user' is there twice"):
        external.read(path, *known)


def test_parquet_files_that_become_far_more_than_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_ALWAYS_ALLOWED", 256 << 20)
    zeros = pa.array(np.zeros(40_000_000, np.float64))
    many = pa.DictionaryArray.from_arrays(np.zeros(2_000, np.int32), ["x" * 1_000_000])
    for name, column in (("zeros", zeros), ("many", many)):  # 0.3 and 2 GB
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"score": column}), path, store_schema=False)
        assert path.stat().st_size < 1 << 20
        with hostile.refused(str(path), "in memory"):
            reading.read_parquet(path)


def test_a_parquet_file_that_ends_its_decoder_ends_nothing_else(tmp_path, monkeypatch):
    path, decoder = tmp_path / "x.parquet", tmp_path / "decoder.py"
    pq.write_table(pa.table({"user": ["u"], "more": [1]}), path)
    assert reading.read_parquet(path, ["user", "item"]).to_pydict() == {"user": ["u"]}
    monkeypatch.setattr(reading, "_PARQUET_CHILD", decoder)
    decoder.write_text("import os\nos.abort()\n")
    with hostile.refused(str(path), "damaged"):
        reading.read_parquet(path)


def test_messages_show_what_a_file_holds_without_obeying_it():
    message = str(UserError("a\x1b[2J\nb\u202e" + "c" * 5000))
    assert message.startswith("a\\u001b[2J\\u000ab\\u202e") and len(message) < 1000
