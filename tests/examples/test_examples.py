"""The examples, run as a reader runs them, on small data.

Those that need a finished run of MMSRARec are in tests/methods/test_mmsrarec.py, beside the run.
"""

import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator

import example_scripts
import pytest
import shop_folder as folders

from mmsrec_jax.data import toyshop
from mmsrec_jax.data.toyshop import ToyshopSettings
from mmsrec_jax.sequential.sasrec import SASRecSettings


@pytest.fixture
def script(request) -> Iterator[example_scripts.Script]:
    script = example_scripts.Script(request.param)
    yield script
    script.close()


@pytest.mark.parametrize("script", example_scripts.SCRIPTS, indirect=True)
def test_the_commands_in_its_docstring_name_flags_that_it_has(script, request):
    text = script.names["__doc__"]
    name = request.node.callspec.params["script"]
    assert f"python examples/{name}.py " in text
    assert set(re.findall(r"--(\w+)=", text)) <= script.flags


@pytest.mark.parametrize("script", ["sequential"], indirect=True)
def test_a_sequential_model_in_thirty_lines(script, tmp_path, capsys, monkeypatch):
    items, histories, _ = toyshop.generate(folders.SHOP)
    folders.write_atomic(tmp_path / "shop", items, histories)
    small = dict(length=8, dim=16, layers=1, batch_size=16, loss_chunk=128, learning_rate=1e-2)
    settings = functools.partial(SASRecSettings, evaluate_every=50, warmup_steps=5, **small)
    monkeypatch.setitem(script.names["main"].__globals__, "SASRecSettings", settings)
    script.run(root=tmp_path / "shop", workdir=tmp_path / "run", steps=50)
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert {"hr@5", "hr@10", "ndcg@10"} <= set(printed)
    assert 10 / 60 < float(printed["hr@10"]) <= 1  # better than chance
    assert len((example_scripts.FOLDER / "sequential.py").read_text().splitlines()) < 40


@pytest.mark.parametrize("script", ["finetune_vlm"], indirect=True)
def test_a_fine_tuned_model_learns_its_answers(script, tmp_path, capsys):
    items, _, _ = toyshop.generate(ToyshopSettings(num_users=2, num_items=8, history=(2, 3)))
    folders.write_model(tmp_path / "models" / "tiny", items)
    lines = ["image,question,answer"]
    for item in items:
        (tmp_path / f"{item.id}.png").write_bytes(item.image)
        lines.append(f"{item.id}.png,What is this?,{item.category}")
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    script.run(
        model=tmp_path / "models" / "tiny", images=tmp_path, texts=tmp_path / "pairs.csv",
        out=tmp_path / "out", steps=60, batch_size=8, length=64, patches=128, learning_rate=0.02,
        dtype="float32",
    )  # fmt: skip
    rows = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(row)["loss"] for row in rows]
    assert len(losses) == 6 and losses[-1] < 0.8 * losses[0]
    assert (tmp_path / "out" / "adapters" / "adapter_model.safetensors").exists()
    assert capsys.readouterr().out
    assert len((example_scripts.FOLDER / "finetune_vlm.py").read_text().splitlines()) <= 120


@pytest.mark.parametrize("script", ["finetune_vlm"], indirect=True)
def test_pairs_are_the_same_from_either_kind_of_file(script, tmp_path):
    pair = {"image": "mug.jpg", "question": "What is this, and whose?", "answer": "A mug."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    (tmp_path / "pairs.csv").write_text(
        'image,question,answer\nmug.jpg,"What is this, and whose?",A mug.\n'
    )
    for name in ("pairs.jsonl", "pairs.csv"):
        assert script.names["read_pairs"](tmp_path / name) == [pair]


def test_the_notebook_is_valid_and_holds_no_outputs():
    notebook = example_scripts.notebook()
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", id) for id in ids)
    for cell in notebook["cells"]:
        code = {"execution_count": None, "outputs": []} if cell["cell_type"] == "code" else {}
        assert cell["cell_type"] in ("code", "markdown") and cell["metadata"] == {}
        assert set(cell) == {"id", "cell_type", "metadata", "source"} | set(code)
        assert {name: cell[name] for name in code} == code
        assert all(line.endswith("\n") for line in cell["source"][:-1])


def test_a_mistake_is_one_line():
    command = [
        sys.executable, "examples/score_history.py", "--history=i0001", "--workdir=nowhere",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=example_scripts.FOLDER.parent, capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "nowhere: no such workdir" in done.stderr.splitlines()[-1]
