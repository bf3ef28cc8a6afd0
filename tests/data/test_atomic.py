import gzip
import io
import json
import time

import numpy as np
import pytest
from PIL import Image

from mmsrec_jax.data import atomic, filters, splits, store
from mmsrec_jax.runtime.errors import UserError

INTER = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "u2\tB\t4.5\t30\n"
    "u1\tA\t5\t1260759108\n"
    "u2\tA\t1\t10.5\n"
    "u1\tC\t4\t1260759100\n"
    "u2\tghost\t5\t20\n"
)
ITEM = (
    "item_id:token\ttitle:token_seq\tyear:float\tgenres:token_seq\n"
    "C\t\t1999\tDrama War\n"
    "A\tÄpfel \"und\" 'Birnen'\t\tComedy\n"
    "B\tBoot\t1981\t\n"
    "unseen\tNobody watched\t2000\tDrama\n"
)


def folder(tmp_path, inter: str | bytes = INTER, item: str | bytes | None = ITEM):
    root = tmp_path / "toy"
    root.mkdir()
    for suffix, content in (("inter", inter), ("item", item)):
        if content is not None:
            content = content.encode() if isinstance(content, str) else content
            (root / f"toy.{suffix}").write_bytes(content)
    return root


def add_image(root, name: str, colour="red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(stream, "PNG")
    (root / "images").mkdir(exist_ok=True)
    (root / "images" / name).write_bytes(stream.getvalue())
    return stream.getvalue()


def test_interactions_and_items(tmp_path):
    items, histories, report = atomic.read(folder(tmp_path))
    assert items.ids == ["C", "A", "B", "unseen", "ghost"]
    by_user = {
        user: [items.ids[i] for i in histories.of(u)] for u, user in enumerate(histories.users)
    }
    assert by_user == {"u2": ["A", "ghost", "B"], "u1": ["C", "A"]}
    assert histories.times(0).tolist() == [10.5, 20, 30]
    assert histories.ratings.tolist() == [1, 5, 4.5, 4, 5]
    assert histories.clock
    assert items[1].text == {"title": "Äpfel \"und\" 'Birnen'", "genres": "Comedy"}
    assert items[0].text == {"year": "1999", "genres": "Drama War"}
    assert items[4].text == {} and items[4].image is None
    assert report.read["users"] == 2 and report.read["interactions"] == 5
    assert report.notes == {"interacted items without a row in .item, kept as bare ids": 1}


def test_fields_by_argument(tmp_path):
    root = folder(tmp_path)
    items, _, _ = atomic.read(root, category_field="genres", attribute_fields=["year"])
    assert (items[2].text, items[2].category) == ({"title": "Boot"}, None)
    assert (items[2].attributes, items[0].category) == ({"year": "1981"}, "Drama War")
    items, _, _ = atomic.read(root, text_fields=["genres", "title"])
    assert list(items[1].text) == ["genres", "title"]
    with pytest.raises(UserError, match="toy.item: no column brand; it has item_id, title, year"):
        atomic.read(root, category_field="brand")


def test_rating_threshold(tmp_path):
    root = folder(tmp_path)
    _, histories, report = atomic.read(root, rating_threshold=4.5)
    assert len(histories.items) == 3
    assert report.dropped[0].interactions == 2 and "4.5" in report.dropped[0].why
    (root / "toy.inter").write_text("user_id:token\titem_id:token\na\tA\n")
    with pytest.raises(UserError, match="no rating column"):
        atomic.read(root, rating_threshold=4.5)


def test_bare_ids_in_file_order_from_gzip(tmp_path):
    root = folder(tmp_path, item=None)
    (root / "toy.inter").unlink()
    content = "\ufeffuser_id:token\titem_id:token\r\nu\t2\r\nv\t1\r\n\r\nu\t1\r\n"
    (root / "toy.inter.gz").write_bytes(gzip.compress(content.encode()))
    items, histories, report = atomic.read(root)
    assert items.ids == ["2", "1"] and items[0].text == {}
    assert [histories.of(u).tolist() for u in range(2)] == [[0, 1], [1]]
    assert histories.timestamps.tolist() == [0, 1, 0]
    assert not histories.clock and histories.ratings is None
    assert report.notes["interactions without timestamp: file order is taken as time"] == 3
    with pytest.raises(UserError, match="no toy.item to take the fields"):
        atomic.read(root, category_field="genres")


def test_images_by_item_id(tmp_path):
    root = folder(tmp_path)
    first, second = add_image(root, "A.PNG"), add_image(root, "B.jpeg", "blue")
    add_image(root, "stranger.png")
    (root / "images" / "notes.txt").touch()
    items, _, report = atomic.read(root)
    assert items.has_image.tolist() == [False, True, True, False, False]
    assert (items[0].image, items[1].image, items[2].image) == (None, first, second)
    assert report.notes["image files of no item, unused"] == 1
    chosen = items.select(np.array([2, 0]))
    assert [item.id for item in chosen] == ["B", "C"] and chosen[0].image == second
    assert items.image_name("B").endswith("images/B.jpeg")
    elsewhere, _, _ = atomic.read(root, images_root=root / "images")
    assert elsewhere[1].image == first
    with pytest.raises(UserError, match="no images <item_id>.jpg"):
        atomic.read(root, images_root=tmp_path)


def bad(line: int, text: str, source: str = INTER) -> str:
    lines = source.splitlines()
    lines[line - 1] = text
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "toy.inter: empty"),
        ("user_id:token\titem_id:token\n", "toy.inter: a header but no rows"),
        ("user_id\titem_id:token\na\tb\n", "toy.inter:1: column 'user_id' is not name:type"),
        ("user_id:str\titem_id:token\na\tb\n", "toy.inter:1: column 'user_id:str' is not"),
        ("user_id:token\tuser_id:token\na\tb\n", "toy.inter:1: column 'user_id' occurs twice"),
        ("user:token\titem_id:token\na\tb\n", "toy.inter: no column user_id; it has user, item_id"),
        (bad(4, "u2\tA\t1\tsoon"), "toy.inter:4: timestamp 'soon' is not a number"),
        (bad(4, "\nu2\tA\t1\tsoon"), "toy.inter:5: timestamp 'soon' is not a number"),
        (bad(3, "u1\tA\t\t1"), "toy.inter:3: rating '' is not a number"),
        (bad(3, "u1\tA\tnan\t1"), "toy.inter:3: rating 'nan' is not a number"),
        (bad(6, "u2\t\t5\t20"), "toy.inter:6: item_id '' is empty"),
        (bad(5, "u1\tC\t4"), "toy.inter:5: 3 columns, the header has 4"),
        (bad(5, "u1\tC\t4\t1\t2"), "toy.inter:5: 5 columns, the header has 4"),
        (bad(2, "u\r2\tB\t4.5\t30"), "toy.inter:2: a carriage return inside the line"),
        (
            INTER.encode().replace(b"ghost", "gh\u00f6st".encode("latin-1")),
            "toy.inter:6: not UTF-8 at byte 5 of the line",
        ),
        (b"user_id:token\titem_id:token\xff\na\tb\n", "toy.inter:1: not UTF-8"),
    ],
)
def test_bad_interactions_are_named_in_one_line(tmp_path, content, message):
    with pytest.raises(UserError) as error:
        atomic.read(folder(tmp_path, content))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (ITEM + "A\tagain\t\t\n", "toy.item:6: item_id 'A' occurs a second time"),
        (ITEM + "\tnameless\t\t\n", "toy.item:6: item_id '' is empty"),
        (ITEM.replace("item_id", "id"), "toy.item: no column item_id; it has id, title"),
        (ITEM.replace("\t1981\t", "\t"), "toy.item:4: 3 columns, the header has 4"),
        ("", "toy.item: empty"),
    ],
)
def test_bad_items_are_named_in_one_line(tmp_path, content, message):
    with pytest.raises(UserError) as error:
        atomic.read(folder(tmp_path, item=content))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(UserError, match="absent: no such folder"):
        atomic.read(tmp_path / "absent")
    root = folder(tmp_path)
    (root / "toy.inter").unlink()
    with pytest.raises(UserError, match="neither toy.inter nor toy.inter.gz"):
        atomic.read(root)
    rng = np.random.default_rng(0)
    lines = [f"u{rng.integers(1 << 40)}\tA\t1\t{i}" for i in range(5000)]
    packed = gzip.compress((INTER + "\n".join(lines)).encode())
    (root / "toy.inter.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match="toy.inter.gz: damaged, unpack or copy it again"):
        atomic.read(root)
    (root / "toy.inter.gz").write_bytes(b"not gzip at all")
    with pytest.raises(UserError, match="toy.inter.gz: cannot be read"):
        atomic.read(root)


def test_from_files_to_a_reported_store(tmp_path):
    root = folder(tmp_path, INTER + "u1\tB\t3\t1260759200\n")
    add_image(root, "A.png")
    add_image(root, "B.png")
    (root / "images" / "C.jpg").write_bytes(b"\xff\xd8 broken")
    items, histories, report = atomic.read(root, category_field="genres")
    histories = report.step("1-core", histories, filters.k_core(histories, users=1, items=1))
    histories = report.step("positives", histories, filters.at_least(histories, 3))
    histories, kept = filters.reindex(histories)
    written = store.write(
        tmp_path / "d", items.select(kept), histories, image_name=items.image_name
    )
    catalog, histories = store.open(tmp_path / "d")
    report.finish(catalog, histories, written)
    report.split(splits.leave_one_out(histories))
    assert catalog.ids.tolist() == ["C", "A", "B", "ghost"]
    assert [item.id for item in (catalog[i] for i in histories.of(1))] == ["C", "A", "B"]

    saved = json.loads(report.to_json())
    assert saved["dropped"][1] == {"why": "positives", "users": 0, "items": 0, "interactions": 1}
    assert saved["stored"] == {
        "users": 2,
        "items": 4,
        "interactions": 5,
        "density": 5 / 8,
        "length_min": 2,
        "length_median": 2.5,
        "length_mean": 2.5,
        "length_max": 3,
    }
    assert saved["coverage"] == {"text title": 2, "text year": 2, "category": 2, "image": 2}
    assert saved["image_share_of_interactions"] == pytest.approx(3 / 5)
    [[name, reason]] = saved["corrupt_images"]
    assert name.endswith("images/C.jpg") and reason
    assert saved["targets"] == {"train": 1, "validation": 1, "test": 1}
    assert saved["fingerprint"] == store.fingerprint(tmp_path / "d")
    table = report.table()
    for words in (
        "read             2      5             6  60.000%             3 / 3 / 3.0 / 3",
        "- positives      0      0             1",
        "2 / 2.5 / 2.5 / 3",
        "image: 2 items (50.0%), 60.0% of the interactions",
        "note: 1 leave_one_out: users with fewer than 3 interactions, train only",
        "corrupt images, left out: 1",
        f"{name}: {reason}",
    ):
        assert words in table, table


# Users, items, interactions, lengths min / median / mean / max, per text field the items that have
# it, items with an image: as published beside the data and counted there by other code.
REAL = {
    "ml-1m": (
        (6040, 3706, 1000209, 20, 96, 165.6, 2314),
        {"title": 3706, "year": 3706, "genres": 3706, "abstract": 2880},
        3256,
    ),
    "ml-small": (
        (671, 9066, 100004, 20, 71, 149.0, 2391),
        {"title": 9066, "year": 9063, "genres": 9049, "abstract": 2553},
        3025,
    ),
    "beauty": ((22363, 12101, 198502, 5, 6, 8.9, 204), {"title": 12094}, 0),
}


@pytest.mark.parametrize("name", REAL)
def test_counts_of_real_data(shared_data, name):
    counts, texts, images = REAL[name]
    images_root = shared_data / "ml-1m" / "images" if name == "ml-small" else None
    start = time.perf_counter()
    items, histories, report = atomic.read(shared_data / name, images_root=images_root)
    assert time.perf_counter() - start < 10
    fields = ("users", "items", "interactions", "length_min", "length_median")
    assert tuple(report.read[field] for field in fields) == counts[:5]
    assert round(report.read["length_mean"], 1) == counts[5]
    assert report.read["length_max"] == counts[6]
    assert items.has_image.sum() == images
    covered = dict.fromkeys(texts, 0)
    for item in items:
        for field in item.text:
            covered[field] += 1
    assert covered == texts
    assert histories.clock == (name == "ml-small")
    assert (histories.ratings is not None) == (name == "ml-small")
    if name == "beauty":
        assert report.read == {**report.read, "density": pytest.approx(0.00073, abs=5e-6)}
        core = filters.k_core(histories, users=5, items=5)
        assert len(core.items) == len(histories.items)  # published as a 5-core
    if name == "ml-1m":
        # SASRec's well-known version: items with five ratings at least.
        assert len(filters.k_core(histories, users=1, items=5).items) == 999_611


def test_real_data_with_many_missing_images_through_the_store(shared_data, tmp_path):
    items, histories, report = atomic.read(
        shared_data / "ml-small", images_root=shared_data / "ml-1m" / "images", rating_threshold=4
    )
    histories = report.step("5-core", histories, filters.k_core(histories, users=5, items=5))
    histories = report.step("users", histories, filters.subset_users(histories, 40, seed=0))
    histories, kept = filters.reindex(filters.break_ties(histories, seed=0))
    written = store.write(tmp_path / "d", items.select(kept), histories)
    catalog, stored = store.open(tmp_path / "d")
    assert not written.corrupt_images and 0 < written.images < len(catalog)
    np.testing.assert_array_equal(stored.timestamps, histories.timestamps)
    for i in (0, len(catalog) // 2, len(catalog) - 1):
        assert catalog[i] == items[int(kept[i])]
    some = int(np.flatnonzero(catalog.has_image)[0])
    assert catalog.image(some).shape[2] == 3
    split = splits.global_time(stored, validation_quantile=0.8, test_quantile=0.9)
    assert len(split.test) and stored.times(split.test[0, 0])[split.test[0, 1]] > 1e9
