"""Command lines on data and models that somebody else made: one line says why they cannot be read.

Rows of damages to a small valid folder; fast ones of the same kinds are in `test_hostile_files.py`
and `test_hostile_models.py`.
"""

import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import hostile
import pytest
import tiny_text_model
from PIL import Image

from mmsrec_jax.prompts import TEMPLATES, corpus

pytestmark = pytest.mark.robustness

HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"
ROWS = "".join(f"u{u}\ti{(3 * u + n) % 40}\t{n}\n" for u in range(12) for n in range(5))


def make_shop(folder: Path) -> Path:
    root = folder / "shop"
    (root / "images").mkdir(parents=True)
    (root / "shop.inter").write_text(HEADER + ROWS)
    items = "".join(f"i{i}\tmug {i}\n" for i in range(40))
    (root / "shop.item").write_text("item_id:token\ttitle:token_seq\n" + items)
    for i in range(8):
        Image.new("RGB", (8, 8), "red").save(root / "images" / f"i{i}.jpg")
    return root


def packed(root: Path) -> None:
    """450 MB in half a MB."""
    (root / "shop.inter").unlink()
    with gzip.open(root / "shop.inter.gz", "wb") as file:
        file.write(HEADER.encode())
        for _ in range(400):
            file.write(b"u1\ti1\t1\n" * 125_000)


def fifo(root: Path) -> None:
    (root / "images" / "i3.jpg").unlink()
    os.mkfifo(root / "images" / "i3.jpg")


def endless(root: Path) -> None:
    (root / "images" / "i9.png").symlink_to("/dev/zero")


REFUSED: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a FIFO for a picture": (fifo, ("images/i3.jpg", "is a FIFO")),
    "an endless picture": (endless, ("images/i9.png", "is a device")),
    "a bomb": (packed, ("shop.inter.gz", "unpacks to more than")),
    "a long field": (
        lambda root: (root / "shop.item").write_text(
            "item_id:token\ttitle:token_seq\ni0\t" + "y" * 50_000_000
        ),
        ("shop.item:2", "longer than"),
    ),
    "a long id": (
        lambda root: (root / "shop.inter").write_text(HEADER + ROWS + "u" * 3_000_000 + "\ti\t1\n"),
        ("shop.inter:62", "longer than"),
    ),
    "a number of another script": (
        lambda root: (root / "shop.inter").write_text(HEADER + ROWS + "u1\ti1\t١\n"),
        ("shop.inter:62", "is not a number"),
    ),
}


def prepare(root: Path, folder: Path) -> hostile.Outcome:
    return hostile.run(
        "launch/train.py",
        "--config=configs/base.py:sasrec",
        f"--config.data.root={root}",
        "--config.data.item_core=0",
        "--steps=data",
        f"--workdir={folder / 'run'}",
        logs=folder / "logs",
        memory_gib=8,
    )


@pytest.mark.parametrize("name", REFUSED)
def test_data_that_is_refused(name, tmp_path):
    damage, said = REFUSED[name]
    root = make_shop(tmp_path)
    damage(root)
    prepare(root, tmp_path).check_refused(*said)


def test_pictures_that_are_left_out(tmp_path):
    """EPS starts no other program; what is too large is not decoded."""
    root = make_shop(tmp_path)
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "EPS")
    (root / "images" / "i0.jpg").write_bytes(stream.getvalue())
    Image.new("1", (13_000, 13_000)).save(root / "images" / "i1.png")
    (root / "images" / "i1.jpg").unlink()
    found = prepare(root, tmp_path)
    assert found.status == 0 and "Traceback" not in found.err, found.err[-2000:]
    report = json.loads((tmp_path / "run" / "data" / "report.json").read_text())
    assert "no known image format" in json.dumps(report) and "13000 x 13000" in json.dumps(report)


@pytest.mark.parametrize("template, said", [
    ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "too much"),
    ("{{ 'a' * 10**10 }}", "too much memory"),
])  # fmt: skip
def test_a_template_that_does_harm(template, said, tmp_path):
    texts = [*corpus(TEMPLATES["full"]), " linen bag, oak lamp, glass bowl"] * 8
    model = tiny_text_model.write(tmp_path / "model", texts, "qwen3")
    (model / "chat_template.jinja").write_text(template)
    found = hostile.run(
        "launch/train.py",
        "--config=configs/quickstart.py",
        f"--config.model.path={model}",
        "--config.data.toyshop.num_users=300",
        "--config.data.toyshop.num_items=120",
        "--config.data.toyshop.num_groups=3",
        "--config.cached.num_items=64",
        "--config.use.images=False",
        "--config.use.rewards=False",
        "--steps=data,summaries",
        f"--workdir={tmp_path / 'run'}",
        logs=tmp_path / "logs",
        memory_gib=8,
    )
    found.check_refused("chat template", said)
