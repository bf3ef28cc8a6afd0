"""What people hand to a finished run and to the examples: read, or refused in one line."""

import json
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import example_scripts
import hostile
import numpy as np
import pytest
import toy_items
from absl import flags
from PIL import Image

from mmsrec_jax.data import item_lines
from mmsrec_jax.evaluation import scaling_law
from mmsrec_jax.inputs import chains
from mmsrec_jax.methods import recommending
from mmsrec_jax.methods.scorer import checked_times
from mmsrec_jax.runtime import startup

ROOT = Path(__file__).resolve().parents[2]
DEEP = "[" * 100_000 + "]" * 100_000

# --- new items: launch/recommend.py --add ---------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("", "holds no items"),
        ("\n \n\t\n", "holds no items"),
        ("null", "line 1: not an object"),
        ("[]", "line 1: not an object"),
        ('"n1"', "line 1: not an object"),
        ("7", "line 1: not an object"),
        ("NaN", "line 1: not valid JSON"),
        ("{", "line 1: not valid JSON"),
        (DEEP, "line 1: not valid JSON"),
        ("{}", "has no id"),
        ('{"title": "oak lamp"}', "has no id"),
        ('{"id": "", "title": "oak lamp"}', "has no id"),
        ('{"id": " \\t ", "title": "oak lamp"}', "has no id"),
        ('{"id": 7, "title": "oak lamp"}', "'id' is 7; write text in quotes"),
        ('{"id": null, "title": "oak lamp"}', "'id' is None; write text in quotes"),
        ('{"id": "n1"}', "'n1' has no text"),
        ('{"id": "n1", "title": "  "}', "'n1' has no text"),
        ('{"id": "n1", "title": ["oak", "lamp"]}', "'title' is ['oak', 'lamp']"),
        ('{"id": "n1", "title": {"en": "lamp"}}', "'title' is {'en': 'lamp'}"),
        ('{"id": "n1", "title": true}', "'title' is True"),
        ('{"id": "n1", "title": 1e999}', "not valid JSON"),
        ('{"id": "n1", "title": "a", "id": "n2"}', "the name 'id' stands twice"),
        ('{"id": "n1", "title": "a", "title": "b"}', "the name 'title' stands twice"),
        ('{"id": "n1", "title": "a"}\n{"id": " n1 ", "title": "b"}', "line 2: the id 'n1' stands"),
        ('{"id": "a\\u0000b", "title": "a"}', "a NUL character"),
        ('{"id": "%s", "title": "a"}' % ("x" * 257), "more than 256 characters"),
        ('{"id": "\\ud800", "title": "a"}', "half a character"),
        ('{"id": "n1", "title": "%s"}' % ("x" * (1 << 20)), "line 1: longer than"),
        ('{"id": "n\\u001b[2J", "title": ""}', "has no text"),
        ('{"id": "n1", "title": "a", "image": "none.jpg"}', "line 1: no picture:"),
        ('{"id": "n1", "title": "a", "image": "."}', "is a folder"),
        ('{"id": "n1", "title": "a", "image": "../outside.png"}', "leads out of the folder"),
        ('{"id": "n1", "title": "a", "image": "/etc/hostname"}', "leads out of the folder"),
        ('{"id": "n1", "title": "a", "image": "link.png"}', "leads out of the folder"),
        ('{"id": "n1", "title": "a", "image": "/dev/zero"}', "is a device"),
        ('{"id": "n1", "title": "a", "image": "pipe.png"}', "is a FIFO"),
        ('{"id": "n1", "title": "a", "image": "a\\u0000.png"}', "no picture:"),
        ('{"id": "n1", "title": "a", "image": "%s"}' % ("x" * 5000), "no picture:"),
        ('{"id": "n1", "title": "a", "image": "new.jsonl"}', "cannot be read"),
        ('{"id": "n1", "title": "a", "image": "cut.png"}', "cannot be read"),
        ('{"id": "n1", "title": "a", "image": "drawing.png"}', "cannot be read"),
    ],
)
def test_new_items(tmp_path, line, named):
    folder = tmp_path / "items"
    folder.mkdir()
    outside = tmp_path / "outside.png"
    Image.new("RGB", (30, 20)).save(outside)
    (folder / "cut.png").write_bytes(outside.read_bytes()[:40])
    (folder / "drawing.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (folder / "link.png").symlink_to(outside)
    os.mkfifo(folder / "pipe.png")
    path = folder / "new.jsonl"
    path.write_text(line)
    with hostile.refused(str(path), named):
        item_lines.read(path)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: os.mkfifo(path), "is a FIFO"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device"),
        (lambda path: path.write_bytes(b"\xff\xfe{\x00}\x00"), "not UTF-8"),
        (lambda path: path.write_bytes(b'{"id": "n1", "title": "\xe9"}'), "line 1: not UTF-8"),
    ],
)
def test_files_of_new_items(tmp_path, make, named):
    path = tmp_path / "new.jsonl"
    make(path)
    with hostile.refused("new.jsonl", named):
        item_lines.read(path)


@pytest.mark.parametrize(
    "id", ["..", ".", "a/../../b", "x" * 256, "\u6f22" * 256, "a b,c", "\x1b[2J", "CON", "-rf"]
)
def test_a_picture_of_any_id_is_one_file_of_its_folder(tmp_path, id):
    name = recommending._file_name(id) + ".jpg"
    (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(os.fsencode(f".{name}.{'0' * 12}.partial")) <= 255


# --- a teacher's chains, for MLLM-SRec ------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"user": 7}, "user is 7"),
        ({"user": None}, "user is None"),
        ({"user": "nobody"}, "no user 'nobody'"),
        ({"user": "\x1b[2J"}, "no user '\\x1b[2J'"),
        ({"user": "u" * 5000}, "no user"),
        ({"position": -1}, "position -1"),
        ({"position": 10**30}, f"position {10**30}"),
        ({"position": 1.0}, "position is 1.0"),
        ({"position": True}, "position is True"),
        ({"position": "1"}, "position is '1'"),
        ({"position": None}, "position is None"),
        ({"chain": ""}, "chain is empty"),
        ({"chain": " \n\t "}, "chain is empty"),
        ({"chain": ["Prefers oak."]}, "chain is ['Prefers oak.']"),
        ({}, "line 2: user"),  # the same line twice
    ],
)
def test_chains(tmp_path, change, named):
    histories = toy_items.histories()
    line = {"user": str(histories.users[0]), "position": 1, "chain": "Prefers oak."}
    path = tmp_path / "chains.jsonl"
    lines = [line, line] if not change else [line | change]
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    with hostile.refused(str(path), named):
        chains.read(path, histories)


# --- times of a history ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "named"),
    [
        ([1.0], "1 for 2 items"),
        ([], "0 for 2 items"),
        ([2.0, 1.0], "oldest first"),
        ([1.0, np.nan], "finite"),
        ([-np.inf, 1.0], "finite"),
        ([1.0, 1e400], "finite"),
    ],
)
def test_times(times, named):
    with hostile.refused("times", named):
        checked_times(times, 2)


def test_typed_times():
    for text in ("now", "1_0 0", "0x10", "2024-01-01", "1;2"):
        with hostile.refused("--times", "seconds since 1970"):
            recommending.numbers(["1", text])


# --- flags of launch/recommend.py -----------------------------------------------------------------


@pytest.fixture
def parse() -> Iterator:
    """Reads a command line of launch/recommend.py, whose flags are there as long as the test."""
    before = set(flags.FLAGS)
    runpy.run_path(str(ROOT / "launch" / "recommend.py"))
    flags.FLAGS.unparse_flags()
    yield lambda *given: startup.parse_flags([sys.argv[0], *given])
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
    flags.FLAGS(sys.argv[:1])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("--top=0", "top"),
        ("--top=-3", "top"),
        ("--top=ten", "top"),
        ("--top=1e3", "top"),
        ("--top=99999999999", "top"),
        ("--now=soon", "now"),
        ("--now=nan", "--now=nan: must be finite"),
        ("--now=inf", "--now=inf: must be finite"),
        ("--history=", "--history= is empty"),
        ("--history=,", "--history= is empty"),
        ("--history=i0001,,i0002", "--history= is empty"),
        ("--history=\x1b[2J", "has the character"),
        ("--user=", "--user= is empty"),
        ("--user= ", "--user= is empty"),
        ("--user=\ud800", "has the character"),
        ("--add=", "--add= is empty"),
        ("--add=gs://bucket/new.jsonl", "a path of this machine"),
        ("--workdir=", "--workdir= is empty"),
        ("--form=both", "form"),
        ("--frm=joint", "frm"),
        ("", "an argument is empty"),
    ],
)
def test_flags_of_recommendation(parse, given, named):
    with hostile.refused(named):
        parse("--workdir=run", given)


# --- lines of pairs: examples/finetune_vlm.py -----------------------------------------------------


@pytest.fixture(scope="module")
def finetune() -> Iterator[example_scripts.Script]:
    script = example_scripts.Script("finetune_vlm")
    yield script
    script.close()


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("p.jsonl", "", "holds no pairs"),
        ("p.jsonl", "[1]", "line 1: give texts named image, question, answer"),
        ("p.jsonl", '{"image": "a.jpg", "question": "?"}', "line 1: give texts"),
        ("p.jsonl", '{"image": 7, "question": "?", "answer": "a"}', "line 1: give texts"),
        ("p.jsonl", '{"image": "a.jpg"', "line 1: not valid JSON"),
        ("p.csv", "", "holds no pairs"),
        ("p.csv", "image,question,answer\n", "holds no pairs"),
        ("p.csv", "image,question\na.jpg,?\n", "row 1: give texts"),
        ("p.csv", "image,question,answer\na.jpg,?\n", "row 1: give texts"),
        ("p.csv", "image;question;answer\na.jpg;?;a\n", "row 1: give texts"),
        ("p.csv", f"image,question,answer\na.jpg,?,{'x' * 200_000}\n", "row 1: field larger"),
    ],
)
def test_pairs_of_an_example(finetune, tmp_path, name, text, named):
    path = tmp_path / name
    path.write_text(text)
    with hostile.refused(str(path), named):
        finetune.names["read_pairs"](path)


@pytest.mark.parametrize(
    ("image", "named"),
    [
        ("../outside.png", "leads out of the folder"),
        ("pipe.png", "is a FIFO"),
        ("none.png", "No such file"),
        ("text.png", "no image"),
        ("/dev/zero", "is a device"),
    ],
)
def test_images_of_an_example(finetune, tmp_path, image, named):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "outside.png")
    (folder / "text.png").write_text("no picture")
    os.mkfifo(folder / "pipe.png")
    with hostile.refused(named):
        finetune.names["read_image"](folder, {"image": image})


# --- what launch/compile.py wrote, for launch/scaling.py ------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"steps": None},
        {"steps": []},
        {"steps": {"sft": {"fits": False}}},
        {"steps": {"sft": []}},
        {"mesh": None},
        {"mesh": {"data": "8"}},
        {"mesh": {"data": 0}},
        {"mesh": {"data": -8}},
        {"topology": None, "slices": None},
        {"slices": "many"},
        {"flops": "many"},
        {"flops": -1e12},
        {"flops": 10**400},
        {"seconds": {}},
        {"seconds": [1.0]},
        {"seconds": {"compute": None}},
        {"seconds": {"compute": 0.0}},
        {"peak": None},
        {"peak": -1},
    ],
)
def test_compiled_programs(tmp_path, change):
    step = {"flops": 5e12, "flops_repeated": 1e12, "peak": 2**31, "seconds": {"compute": 0.5}}
    report = {"topology": "v5e:2x4", "slices": 1, "mesh": {"data": 8}}
    inner = {name: value for name, value in change.items() if name in step}
    outer = {name: value for name, value in change.items() if name not in step}
    path = tmp_path / "7b.json"
    path.write_text(json.dumps(report | {"steps": {"sft": step | inner}} | outer))
    with hostile.refused(str(path), "no step sft that fits"):
        scaling_law.read_compiled(path, 100, lambda flops: 1.0)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"steps": NaN}', DEEP])
def test_files_of_compiled_programs(tmp_path, text):
    path = tmp_path / "7b.json"
    path.write_text(text)
    with hostile.refused(f"--compiled={path}"):
        scaling_law.read_compiled(path, 100, lambda flops: 1.0)
    os.remove(path)
    os.mkfifo(path)
    with hostile.refused(f"--compiled={path}", "is a FIFO"):
        scaling_law.read_compiled(path, 100, lambda flops: 1.0)
