"""What is written, and what an exported model reads: files in the way, hostile names, numbers."""

import json
import os

import hostile
import numpy as np
import pytest

from mmsrec_jax.evaluation import scaling_law
from mmsrec_jax.methods import model_card
from mmsrec_jax.methods.model_card import Card
from mmsrec_jax.pages import charts, curves, document, run_folder
from mmsrec_jax.planning import report, topologies
from mmsrec_jax.runtime import disk, errors
from mmsrec_jax.sequential import standalone


def test_a_page_or_report_replaces_nothing_else(tmp_path):
    theirs = tmp_path / "shop.inter"
    theirs.write_text("user_id:token\n")
    with hostile.untouched(tmp_path):
        with hostile.refused(str(theirs), "no page of ours"):
            document.write(theirs, document.document("a", None, []))
        with hostile.refused(str(theirs), "no report of ours"):
            report.run(None, topology="cpu:1", steps=["sft"], out=theirs)
        with hostile.refused(str(tmp_path), "a folder stands there"):
            document.check_path(tmp_path)
    for title in ("a", "b"):
        document.write(tmp_path / "page.html", document.document(title, None, []))
    assert "<title>b</title>" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    "record", ["[]", '{"steps": []}', '{"config": {}, "steps": 5}', "[" * 9999]
)
def test_a_damaged_record_of_the_run_is_refused_and_the_next_start_writes_it(tmp_path, record):
    (tmp_path / "run.json").write_text(record)
    with hostile.refused("run.json", "run launch/train.py"):
        run_folder.read(tmp_path)
    run_folder.begin(tmp_path, {}, ["data"])
    assert [step.name for step in run_folder.read(tmp_path).steps] == ["data"]


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "table.json")
    with (
        hostile.refused("table.json", "no regular file", seconds=2),
        disk.readable(tmp_path / "table.json", "delete it"),
    ):
        (tmp_path / "table.json").read_text()


def test_curves_of_any_numbers(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 1, "loss": 1e308}, {"step": 2, "loss": -1e308}, {"step": 3, "loss": 1.0}]
    path.write_text("\n".join([*map(json.dumps, lines), "[" * 9999, "null", '{"step": 1e400}']))
    assert "loss" in curves.charts_of_step(curves.read(path))
    line = charts.Line("a", np.array([1.0, 2.0]), np.array([1e308, -1e308]))
    charts.line_chart("all too large", [line])


@pytest.mark.parametrize("error", [RecursionError("maximum"), KeyError("x"), b"\xff", "9" * 5000])
def test_reasons_are_told_without_names_of_python(error):
    try:
        raise error if isinstance(error, Exception) else ValueError
    except Exception as raised:
        found = raised
    if not isinstance(error, Exception):
        with pytest.raises(ValueError) as caught:
            error.decode() if isinstance(error, bytes) else int(error)
        found = caught.value
    said = errors.first_line(found)
    assert said in ("nested too deeply", "'x' is missing", "not UTF-8 at byte 0",
                    "a number of thousands of digits")  # fmt: skip


@pytest.mark.parametrize("text", ["1_0", "\u0663", "nan", "inf", "-1", "0", "0x10", ""])
def test_amounts_of_compute(text):
    with hostile.refused("--predict", "1e18"):
        scaling_law.parse_flops(["1e3", text])


@pytest.mark.parametrize("size", ["0", "-1", "9" * 5000, "\u0668", "8x", "2000", "1x1x1x1", "8\n"])
def test_sizes_that_no_machine_has(size):
    with hostile.refused("--topology=cpu:"):
        topologies.describe(f"cpu:{size}")


def test_names_in_a_model_card_are_text(tmp_path):
    row = {"system": "a|b\n# c `![x](http://y)`", "protocol": "<b>", "ndcg@10": 0.5}
    text = Card("sft", "jax", "", "", "mit", "shop`\n---\n# x", "load()\n").text([row])
    assert "data `shop\\u000a---\\u000a# x`." in text
    assert "| a\\|b\\\\u000a\\# c \\`\\!\\[x\\](http://y)\\` | \\<b\\> |" in text
    for rows in ('[{"protocol": "full"}]', '[{"system": "a", "protocol": "b", "hr@10": "x"}]', "5"):
        (tmp_path / "table.json").write_text(rows)
        with hostile.refused("table.json", "damaged"):
            model_card.table_of(tmp_path)


@pytest.mark.parametrize(
    "about",
    ["", "[]", "[" * 9999, "{}", f'{{"format": "{standalone.FORMAT}", "files": []}}',
     f'{{"format": "{standalone.FORMAT}", "files": {{}}, "length": "5"}}'],
)  # fmt: skip
def test_an_exported_folder_that_is_damaged(tmp_path, about):
    (tmp_path / standalone.ABOUT).write_text(about)
    with pytest.raises(standalone.ExportError, match="recommender.json: damaged; export it again"):
        standalone.Recommender(tmp_path)


def test_an_exported_folder_with_a_pipe(tmp_path):
    os.mkfifo(tmp_path / standalone.ABOUT)
    with pytest.raises(standalone.ExportError, match="missing"):
        standalone.Recommender(tmp_path)
