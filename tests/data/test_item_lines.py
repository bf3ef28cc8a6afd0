import io
import json

import numpy as np
import pytest
from PIL import Image

from mmsrec_jax.data import images, item_lines
from mmsrec_jax.data.records import Catalog, Item
from mmsrec_jax.runtime.errors import UserError


def encoded(format):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, format)
    return buffer.getvalue()


def write(folder, *lines):
    path = folder / "new.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n")
    return path


def test_lines_become_items(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(encoded("JPEG"))
    path = write(
        tmp_path,
        {"id": "a", "title": "Ofen—neu", "description": " d ", "image": "pictures/a.jpg"},
        "",
        {"id": "b", "brand": "x", "category": "lamps", "description": ""},
    )
    assert item_lines.read(path) == [
        Item("a", {"title": "Ofen—neu", "description": "d"}, encoded("JPEG")),
        Item("b", {"brand": "x"}, None, "lamps"),
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"id": "a", "title": "x"}, "{"], "line 2: not valid JSON"),
        (["[1]"], "line 1: not an object"),
        ([{"id": 7, "title": "x"}], "line 1: 'id' is 7; write text in quotes"),
        ([{"title": "x"}], "line 1: the item has no id"),
        ([{"id": "a", "title": " "}], "line 1: item 'a' has no text"),
        ([{"id": "a", "title": "x"}] * 2, "line 2: the id 'a' stands above"),
        (
            [{"id": "a", "title": "x", "image": "no.jpg"}],
            "line 1: no picture: .*no.jpg: cannot be read",
        ),
        (
            [{"id": "a", "title": "x", "image": "new.jsonl"}],
            "line 1: the picture .* cannot be read",
        ),
        ([""], "holds no items"),
    ],
)
def test_mistakes_name_the_line(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        item_lines.read(write(tmp_path, *lines))


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        item_lines.read(tmp_path / "new.jsonl")


def test_a_catalog_with_items_behind_its_own():
    first = Catalog.from_items([Item("a", {"title": "A"}, encoded("PNG")), Item("b")])
    both = first.extended([Item("long-id", {"name": "C"}, encoded("JPEG")), Item("d")])
    assert both.ids.tolist() == ["a", "b", "long-id", "d"] and len(first) == 2
    assert [item.id for item in both] == both.ids.tolist()
    assert both.has_image.tolist() == [True, False, True, False]
    assert both.index["long-id"] == 2 and both.image(2).shape == (4, 4, 3)
    assert [item.title for item in both] == ["A", "", "C", ""]
    again = both.extended([Item("e")])
    assert again[4].id == "e" and again[3].id == "d" and again[0].title == "A"


def test_what_a_picture_is():
    kinds = [images.suffix(encoded(format)) for format in ("PNG", "JPEG", "WEBP")]
    assert kinds == [".png", ".jpeg", ".webp"]
    with pytest.raises(images.ImageError):
        images.suffix(np.zeros(20, np.uint8).tobytes())
