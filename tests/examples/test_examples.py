"""The examples, run as a reader runs them, on small data."""

import csv
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import shop_folder as folders
from absl import flags

import mmsrec_jax
from mmsrec_jax.data import toyshop
from mmsrec_jax.data.toyshop import ToyshopSettings
from mmsrec_jax.evaluation.protocols import Candidates

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))
TINY = {
    "data.toyshop.num_users": 150, "data.toyshop.num_items": 60, "data.toyshop.num_groups": 3,
    "model.tiny.hidden": 32, "model.tiny.layers": 1, "model.tiny.intermediate": 64,
    "model.tiny.vision_layers": 1, "model.tiny.vision_hidden": 24,
    "model.tiny.vision_intermediate": 48,
    "warmup.steps": 4, "warmup.warmup_steps": 2, "warmup.batch_size": 8, "warmup.log_every": 2,
    "summarizer.steps": 2, "summarizer.batch_size": 8, "summarizer.num_generations": 2,
    "summarizer.warmup_steps": 1, "summarizer.micro_batch": 16, "summarizer.distractors": 2,
    "summarizer.max_new_tokens": 8, "summarizer.log_every": 1, "summaries.batch_size": 64,
    "sasrec.steps": 20, "sasrec.evaluate_every": 10, "sasrec.batch_size": 8, "sasrec.dim": 16,
    "sft.steps": 4, "sft.warmup_steps": 2, "sft.batch_size": 8, "sft.log_every": 2,
    "evaluation.users": 40, "evaluation.batch_size": 8,
}  # fmt: skip


class Script:
    """One example as a module, with flags of its own."""

    def __init__(self, name: str):
        path = EXAMPLES / f"{name}.py"
        self.flags = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', path.read_text()))
        self.module = runpy.run_path(str(path))

    def run(self, **values) -> None:
        flags.FLAGS([sys.argv[0], *(f"--{name}={value}" for name, value in values.items())])
        self.module["main"]([])

    def close(self) -> None:
        for name in self.flags:
            delattr(flags.FLAGS, name)


@pytest.fixture
def script(request) -> Iterator[Script]:
    script = Script(request.param)
    yield script
    script.close()


@pytest.mark.parametrize("script", SCRIPTS, indirect=True)
def test_the_commands_in_its_docstring_name_flags_that_it_has(script, request):
    text = script.module["__doc__"]
    name = request.node.callspec.params["script"]
    assert f"python examples/{name}.py " in text
    assert set(re.findall(r"--(\w+)=", text)) <= script.flags


@pytest.mark.parametrize("script", ["sequential"], indirect=True)
def test_a_sequential_model_in_thirty_lines(script, tmp_path, capsys):
    items, histories, _ = toyshop.generate(folders.SHOP)
    folders.write_atomic(tmp_path / "shop", items, histories)
    script.run(root=tmp_path / "shop", workdir=tmp_path / "run", steps=200)
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert {"hr@5", "hr@10", "ndcg@10"} <= set(printed)
    assert 10 / 60 < float(printed["hr@10"]) <= 1  # better than chance
    assert len((EXAMPLES / "sequential.py").read_text().splitlines()) < 40


@pytest.mark.parametrize("script", ["finetune_vlm"], indirect=True)
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_fine_tuned_model_learns_its_answers(script, tmp_path, capsys, suffix):
    items, _, _ = toyshop.generate(ToyshopSettings(num_users=2, num_items=8, history=(2, 3)))
    folders.write_model(tmp_path / "models" / "tiny", items)
    pairs = [
        {"image": f"{item.id}.png", "question": "What is this?", "answer": item.category}
        for item in items
    ]
    for item in items:
        (tmp_path / f"{item.id}.png").write_bytes(item.image)
    texts = tmp_path / f"pairs{suffix}"
    with texts.open("w", newline="") as file:
        if suffix == ".csv":
            writer = csv.DictWriter(file, pairs[0])
            writer.writeheader()
            writer.writerows(pairs)
        else:
            file.writelines(json.dumps(pair) + "\n" for pair in pairs)
    script.run(
        model=tmp_path / "models" / "tiny", images=tmp_path, texts=texts, out=tmp_path / "out",
        steps=20, batch_size=8, length=64, patches=128, learning_rate=0.05, dtype="float32",
    )  # fmt: skip
    rows = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(row)["loss"] for row in rows]
    assert losses[-1] < 0.7 * losses[0]
    assert (tmp_path / "out" / "adapters" / "adapter_model.safetensors").exists()
    assert capsys.readouterr().out


def cells(kind: str) -> list[dict]:
    notebook = json.loads((EXAMPLES / "toyshop.ipynb").read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_the_notebook_is_valid_and_holds_no_outputs():
    notebook = json.loads((EXAMPLES / "toyshop.ipynb").read_text())
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", id) for id in ids)
    for cell in notebook["cells"]:
        code = {"execution_count": None, "outputs": []} if cell["cell_type"] == "code" else {}
        assert cell["cell_type"] in ("code", "markdown") and cell["metadata"] == {}
        assert set(cell) == {"id", "cell_type", "metadata", "source"} | set(code)
        assert {name: cell[name] for name in code} == code
        assert all(line.endswith("\n") for line in cell["source"][:-1])


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """What the notebook's cells leave behind, and the folder of the run that they made."""
    plt.switch_backend("Agg")
    folder, namespace = tmp_path_factory.mktemp("notebook"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(plt, "show", lambda: None)
        for cell in cells("code"):
            source = "".join(cell["source"]).replace('SIZE = "small"', 'SIZE = "tiny"')
            source = source.replace('"full": {}', f'"full": {{}}, "tiny": {TINY}')
            exec(compile(source, cell["id"], "exec"), namespace)
    yield namespace, folder / "runs" / "toyshop-tiny"
    plt.close("all")


def test_the_notebook_shows_items_keywords_curves_and_lists(notebook):
    namespace, workdir = notebook
    figures = [plt.figure(number) for number in plt.get_fignums()]
    assert [len(figure.axes) for figure in figures] == [6, 6, 4, 6, 6, 6]
    shown = figures[0].axes[1].images[0].get_array()
    np.testing.assert_array_equal(shown, namespace["catalog"].image(1))
    for axis, (step, metric) in zip(figures[2].axes, namespace["CURVES"].items(), strict=True):
        (line,) = axis.lines
        assert len(line.get_xdata()) >= 2 and metric in axis.get_title()
        assert line.get_xdata()[-1] == TINY[f"{step}.steps"]
    assert json.loads((workdir / "table.json").read_text())


@pytest.mark.parametrize("script", ["score_history"], indirect=True)
def test_a_typed_history_is_scored_as_the_run_evaluated_it(notebook, script, capsys):
    """Users similar to a test user must not be themselves, which a typed history cannot know: the
    ranks agree for most users, and the order of scores is the printed one."""
    _, workdir = notebook
    catalog, histories, _ = mmsrec_jax.open_dataset(workdir)
    frozen = Candidates.read(workdir / "evaluation" / "candidates.parquet")
    user, position = frozen.rows[0]
    history = catalog.ids[histories.of(user)[:position]].tolist()
    candidates = catalog.ids[frozen.items[0]].tolist()
    script.run(workdir=workdir, history=",".join(history), candidates=",".join(candidates), top=21)
    printed = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    scores = [float(score) for score, _ in printed]
    assert scores == sorted(scores, reverse=True)
    assert sorted(id for _, id in printed) == sorted(candidates)
    ranked = mmsrec_jax.recommend(workdir, history, candidates, top=3)
    assert [row.item_id for row in ranked] == [id for _, id in printed[:3]]
    script.run(workdir=workdir, history=",".join(history), top=5)
    printed = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert len(printed) == 5 and not set(printed) & set(history)


def test_a_mistake_is_one_line(tmp_path):
    command = [sys.executable, EXAMPLES / "score_history.py", "--history=i1", "--workdir=nowhere"]
    done = subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "nowhere: no such workdir" in done.stderr.splitlines()[-1]
