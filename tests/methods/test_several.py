"""Both methods in one workdir, with stand-ins that train nothing; several seeds are in
test_sequential.py. In real processes, killed on the way: the methods themselves."""

import dataclasses
import json
import re

import example_scripts
import killed_runs
import launched
import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq
import pytest
from html_check import Page
from test_mllm_srec import TINY as TINY_SREC
from test_mmsrarec import TINY as TINY_RAREC
from test_mmsrarec import finish

from configs import base, quickstart
from mmsrec_jax import methods
from mmsrec_jax.evaluation.baselines import Random
from mmsrec_jax.methods import recommending, several
from mmsrec_jax.methods.export import export
from mmsrec_jax.methods.sequential import Sequential
from mmsrec_jax.pages import run_folder
from mmsrec_jax.planning import report
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.workdir import Step, runs_in

SHARED_ROWS = ("random", "popularity", "cooccurrence", "sasrec")


class StandIn(Sequential):
    """A method whose row is chance, after a step of its own; SASRec and the rest are shared."""

    fails = False  # in the step of MLLM-SRec

    def steps(self):
        first, *others, last = super().steps()
        settings = {"steps": self.config.sft.steps}
        own = Step(f"{self.config.method}_words", self.write, settings, ["data"])
        last = dataclasses.replace(last, inputs=[*last.inputs, own.name])
        return [first, *others, own, last]

    def write(self, directory):
        (directory / "words.txt").write_text(f"{self.config.sft.steps} steps")
        if self.fails and self.config.method == "mllm_srec":
            raise RuntimeError("killed")

    def evaluation(self, directory):
        board = self.leaderboard(directory)
        own = Random(len(self.dataset.catalog), self.config.seed + len(self.config.method))
        own.name = self.config.method
        for system in (*board.baselines(), self.recommender(), own):
            board.add(system)
        board.finish()


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setattr(several, "find", lambda name: StandIn)
    config = base.get_config()
    config.method, config.data.source = "both", "toyshop"
    config.data.toyshop.update(num_users=150, num_items=60, num_groups=3)
    config.sasrec.update(
        length=8, dim=16, layers=1, mlp_dim=16, steps=10, evaluate_every=10, batch_size=8,
        loss="sampled_softmax", negatives=8,
    )  # fmt: skip
    config.evaluation.update(users=40, negatives=(5,), k=(1, 5))
    with config.unlocked():
        config.mllm_srec.update({"sft": {"steps": 700}})
    return config


def test_two_methods_give_one_table_and_share_what_is_equal(config, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", logger="absl")
    monkeypatch.setattr(StandIn, "fails", True)
    with pytest.raises(RuntimeError, match="killed"):
        methods.run(config, tmp_path)
    assert not (tmp_path / "table.json").exists()
    monkeypatch.setattr(StandIn, "fails", False)
    caplog.clear()
    methods.run(config, tmp_path)
    said = [record.getMessage() for record in caplog.records]
    begun = [line for line in said if line.endswith((" begins", " goes on"))]
    assert begun == ["step mllm_srec_words goes on", "step evaluation begins"]
    for step in ("data", "sasrec"):
        left = [tmp_path / method / step for method in ("mmsrarec", "mllm_srec")]
        files = [{p.name: p.stat().st_ino for p in f.rglob("*") if p.is_file()} for f in left]
        records = [json.loads((folder / "step.json").read_text()) for folder in left]
        assert [record.get("taken_from") for record in records] == [None, str(left[0].parent)]
        del files[1]["step.json"]
        assert files[1] and files[1].items() <= files[0].items()  # hard links
    written = [tmp_path / m / f"{m}_words" / "words.txt" for m in ("mmsrarec", "mllm_srec")]
    assert [path.read_text() for path in written] == ["2000 steps", "700 steps"]
    check_table(tmp_path)
    assert any(re.match(r"mllm_srec +1 .* [+-]\d\.\d+ \[", line) for line in said)

    caplog.clear()
    before = (tmp_path / "table.json").read_bytes()
    methods.run(config, tmp_path)
    assert not any("begins" in record.getMessage() for record in caplog.records)
    assert (tmp_path / "table.json").read_bytes() == before

    other = tmp_path / "other"  # of another command that takes what is there
    methods.run(config, other, only=["data", "mllm_srec_words"], reuse=[tmp_path])
    assert f"step mllm_srec_words is taken from {tmp_path / 'mllm_srec'}" in caplog.text
    assert not (other / "mmsrarec" / "sasrec").exists() and not (other / "table.json").exists()
    for name in ("recommend", "export", "page"):
        with pytest.raises(UserError, match="has runs in mllm_srec, mmsrarec; name one"):
            read_as(name, other)


def check_table(workdir):
    """Against the ranks on disk: every row once, and the difference of the two methods."""
    found = {
        (r["system"], r["protocol"]): r for r in json.loads((workdir / "table.json").read_text())
    }
    systems = (*SHARED_ROWS, "mmsrarec", "mllm_srec")
    assert set(found) == {(s, p) for s in systems for p in ("full", "sampled@5")}
    hits = []
    for method in ("mmsrarec", "mllm_srec"):
        file = workdir / method / "evaluation" / f"ranks-{method}-sampled@5.parquet"
        hits.append(np.asarray(pq.read_table(file)["rank"]) <= 1)
        row = found[method, "sampled@5"]["hr@1"]
        assert row["mean"] == pytest.approx(hits[-1].mean())
    paired = hits[1].astype(float) - hits[0]
    draws = np.random.default_rng(5).integers(0, 40, (4000, 40))
    low, high = np.quantile(paired[draws].mean(1), [0.025, 0.975])
    row = found["mllm_srec", "sampled@5"]
    assert row["baseline"] == "mmsrarec" and row["hr@1"]["difference"] == pytest.approx(
        paired.mean()
    )
    assert row["hr@1"]["low"] == pytest.approx(low, abs=0.03)
    assert row["hr@1"]["high"] == pytest.approx(high, abs=0.03)
    page = Page((workdir / "report.html").read_text(), linked=True)
    links = [given["href"] for tag, given in page.seen if tag == "a" and ".html" in given["href"]]
    assert page.problems == [] and links == ["mmsrarec/report.html", "mllm_srec/report.html"]
    assert all((workdir / link).exists() for link in links)
    assert (workdir / "comparison" / "comparison.csv").exists()


def read_as(program, workdir):
    """What a program does with the workdir of both."""
    if program == "recommend":
        recommending.check(workdir)
    elif program == "export":
        export(workdir, workdir / "exported")
    else:
        run_folder.read(workdir)


def test_both_methods_under_several_seeds(config, tmp_path):
    config.seeds = (3, 1)
    methods.run(config, tmp_path)
    names = [f"{method}/seed-{seed}" for method in ("mllm_srec", "mmsrarec") for seed in (1, 3)]
    assert runs_in(tmp_path) == names
    table = json.loads((tmp_path / "table.json").read_text())
    rows = {row["system"]: row for row in table if row["protocol"] == "sampled@5"}
    assert set(rows) == {*SHARED_ROWS, "mmsrarec", "mllm_srec"}
    assert [rows[name]["seeds"] for name in ("mmsrarec", "mllm_srec", "sasrec")] == [2, 2, 2]
    assert rows["mllm_srec"]["baseline"] == "mmsrarec"
    page = Page((tmp_path / "report.html").read_text(), linked=True)
    assert page.problems == [] and "mllm_srec/seed-1" in page.words


def test_a_step_that_neither_has_is_refused_and_so_is_compiling_both(config, tmp_path):
    with pytest.raises(UserError, match="there is no step 'words'; steps are data, sasrec, mms"):
        methods.run(config, tmp_path, only=["words"])
    assert not any(tmp_path.iterdir())
    with pytest.raises(UserError, match="method='both': compile each method by a config of its"):
        report.run(config, topology="cpu:8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup": {"stepz": 3}}, "config.mllm_srec.warmup.stepz: .* did you mean 'steps'"),
        ({"cached": {"steps": 0}}, "config.mllm_srec.cached.steps=0: must be at least 1"),
        ({"cached": {"steps": "many"}}, "config.mllm_srec.cached.steps='many': must be int"),
        ({"sft": 3}, "config.mllm_srec.sft=3: must be a section"),
        ({"writer": {"steps": 9}}, "config.mllm_srec.writer: only MLLM-SRec reads it; set config"),
        ({"seeds": (1, 2)}, "config.mllm_srec.seeds: it is of the whole experiment"),
        ({"data": {"toyshop": {"num_users": 9}}}, "num_users: 16000 -> 9: both methods are"),
        ({"evaluation": {"users": 7}}, "config.mllm_srec.evaluation.users: 1500 -> 7: both meth"),
    ],
)  # fmt: skip
def test_what_the_second_method_cannot_have(changes, message, tmp_path):
    config = quickstart.get_config("both")
    with config.unlocked():
        config.mllm_srec = changes
    with pytest.raises(UserError, match=message):
        methods.run(config, tmp_path)
    assert not any(tmp_path.iterdir())


def test_what_is_refused_of_the_second_method_names_its_field_at_once(config, tmp_path):
    """Before the first has done anything."""
    with config.unlocked():
        config.mllm_srec.update({"model": {"path": str(tmp_path / "nowhere")}})
    with pytest.raises(UserError, match="config.mllm_srec.model.path=.*nowhere"):
        methods.run(config, tmp_path)
    assert not any(tmp_path.iterdir())


def test_data_of_both_come_first_and_what_one_reads_is_left_out_of_the_other(
    config, tmp_path, caplog
):
    caplog.set_level("INFO", logger="absl")
    methods.run(config, tmp_path, only=["data", "sasrec"])
    said = [record.getMessage() for record in caplog.records]
    done = [(said.index(line), line.split()[1]) for line in said if line.startswith("step ")]
    assert [step for _, step in sorted(done)][:2] == ["data", "data"]
    config.data.user_fields, config.data.source = ("age",), "atomic"
    first, second = several.runs(config).values()
    assert (first.data.user_fields, second.data.user_fields) == ((), ("age",))


def test_the_changes_are_of_a_run_of_both_alone(tmp_path):
    config = quickstart.get_config("both")
    config.method = "mmsrarec"
    with pytest.raises(UserError, match="config.mllm_srec has fields, but config.method='mmsr"):
        methods.run(config, tmp_path)


# --- the methods themselves -----------------------------------------------------------------------


def tiny():
    """Changes of the config; MLLM-SRec's are those of its own test, where it has the field."""
    fields = {**TINY_RAREC, "evaluation.rerank": 0, "evaluation.fuse": False}
    fields |= {"forms": ("cached",), "also_sequential": (), "use.text_sft": False}
    own = quickstart.get_config("both").mllm_srec
    for name, value in TINY_SREC.items():
        section, _, field = name.partition(".")
        if section in ("understanding", "preferences", "writer", "chain"):
            fields[name] = value
        elif field in own.get(section, {}):
            fields[f"mllm_srec.{name}"] = value
    return fields


def start(workdir, tmp_path):
    flags = [f"--config.{name}={value}" for name, value in tiny().items()]
    return launched.start(
        "launch/train.py", "--config=configs/quickstart.py:both", f"--workdir={workdir}", *flags,
        log=tmp_path / f"{workdir.name}.log", compiled=tmp_path / "compiled",
    )  # fmt: skip


@pytest.mark.processes
def test_both_methods_killed_on_the_way_end_as_if_unbroken(tmp_path, monkeypatch, capsys):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    finish(start(unbroken, tmp_path), tmp_path, unbroken)
    steps = ["mmsrarec/cached", "mllm_srec/preferences", "mllm_srec/chain_cached"]
    assert killed_runs.kill_in(broken, steps, start) == steps
    finish(start(broken, tmp_path), tmp_path, broken)
    assert (unbroken / "table.json").read_bytes() == (broken / "table.json").read_bytes()
    for file in unbroken.glob("*/evaluation/ranks-*.parquet"):
        assert pq.read_table(file).equals(pq.read_table(broken / file.relative_to(unbroken)))
    check_notebook(unbroken, monkeypatch, capsys)


def check_notebook(workdir, monkeypatch, capsys):
    """All of it, on a finished run, which it does not run again."""
    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", lambda: None)
    try:
        example_scripts.run_notebook(workdir, tiny())
        assert [len(plt.figure(n).axes) for n in plt.get_fignums()] == [6, 6, 4, 6, 6, 6, 6]
    finally:
        plt.close("all")
    printed = capsys.readouterr().out
    rows = ("mmsrarec ", "mllm_srec ", "sasrec ", "keyword_logit:mllm_srec ")
    assert all(f"\n{row}" in printed for row in rows) and "profiles:\n" in printed
    assert not list(workdir.glob("*/superseded"))
