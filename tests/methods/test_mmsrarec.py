"""The whole method on a tiny shop, in real processes: killed in every step, and once unbroken."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import example_scripts
import jax
import killed_runs
import known_users
import launched
import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq
import pytest
import xla_flags
from html_check import Page
from logged_metrics import explained, logged

import mmsrec_jax
from mmsrec_jax.evaluation.protocols import Candidates
from mmsrec_jax.evaluation.ranking import full_from_scores, read_ranks
from mmsrec_jax.methods.mmsrarec import MMSRARec
from mmsrec_jax.methods.reranker import Reranker
from mmsrec_jax.methods.scorer import Scorer
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.sharding import make_mesh

ROOT = Path(__file__).resolve().parents[2]
STEPS = (
    "data", "model", "warmup", "summarizer", "summaries", "sasrec", "retrieval", "text_sft",
    "sft", "cached", "evaluation",
)  # fmt: skip
LOOPS = ("warmup", "summarizer", "sasrec", "text_sft", "sft", "cached")
TINY = {
    "data.toyshop.num_users": 150, "data.toyshop.num_items": 60, "data.toyshop.num_groups": 3,
    "model.tiny.hidden": 32, "model.tiny.layers": 2, "model.tiny.intermediate": 64,
    "model.tiny.vision_hidden": 24, "model.tiny.vision_intermediate": 48,
    "warmup.steps": 8, "warmup.warmup_steps": 2, "warmup.checkpoint_every": 2,
    "warmup.batch_size": 4, "summarizer.steps": 4, "summarizer.batch_size": 4,
    "summarizer.num_generations": 2, "summarizer.micro_batch": 8, "summarizer.distractors": 2,
    "summarizer.max_new_tokens": 8, "summarizer.checkpoint_every": 1, "summaries.batch_size": 8,
    "sasrec.steps": 30, "sasrec.evaluate_every": 10, "sasrec.batch_size": 8, "sasrec.dim": 16,
    "sft.steps": 8, "sft.warmup_steps": 2, "sft.checkpoint_every": 2, "sft.batch_size": 4,
    "sft.evaluate_every": 4, "sft.validation_rows": 8,
    "forms": ("joint", "cached"), "cached.steps": 8, "cached.evaluate_every": 4,
    "cached.warmup_steps": 2, "cached.checkpoint_every": 2, "cached.log_every": 4,
    "cached.num_users": 8, "cached.num_items": 16, "cached.validation_rows": 16,
    "cached.score_items": 32, "cached.score_users": 16,
    "evaluation.users": 16, "evaluation.batch_size": 8, "evaluation.rerank": 25,
    "evaluation.fuse": True, "evaluation.negatives": (20, 30), "prompts.fields": ("title",),
    "sft.retriever_negatives": 0.3, "prompts.aggregate": 8, "use.plain_sft": False,
    "use.text_sft": True,
    "also_sequential": ("molar",), "molar.steps": 10, "molar.evaluate_every": 5,
    "molar.batch_size": 8, "molar.dim": 16, "features.batch_size": 30,
    "evaluation.length": 900,  # so that all candidates show all they have
}  # fmt: skip


def start(workdir, tmp_path, *arguments):
    flags = [f"--config.{name}={value}" for name, value in TINY.items()]
    return launched.start(
        "launch/train.py", "--config=configs/quickstart.py", f"--workdir={workdir}", *flags,
        *arguments, log=tmp_path / f"{workdir.name}.log", compiled=tmp_path / "compiled",
    )  # fmt: skip


def finish(process, tmp_path, workdir):
    process.join(timeout=400)
    assert process.exitcode == 0, (tmp_path / f"{workdir.name}.log").read_text()[-4000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mmsrarec")
    return killed_runs.unbroken_and_killed(folder, STEPS, start, finish)


def test_killed_in_every_step_ends_as_if_unbroken(runs):
    unbroken, broken, killed = runs
    assert killed == list(STEPS)
    assert json.loads((broken / "table.json").read_text()) == json.loads(
        (unbroken / "table.json").read_text()
    )
    for file in ("summaries.jsonl", "rewards.jsonl"):
        left = [(run / "summaries" / file).read_text() for run in (broken, unbroken)]
        assert left[0] == left[1] and left[0]
    for ranks in (unbroken / "evaluation").glob("ranks-*.parquet"):
        assert pq.read_table(ranks).equals(pq.read_table(broken / "evaluation" / ranks.name))
    for step in LOOPS:
        for run in (unbroken, broken):
            steps = [row["step"] for row in metrics(run / step)]
            assert steps == sorted(steps)
        assert losses(broken / step) == losses(unbroken / step)


def test_the_page_tells_which_steps_were_killed(runs):
    """Those that train surely were after they had begun: they had left a checkpoint."""
    unbroken, broken = (Page((folder / "report.html").read_text()) for folder in runs[:2])

    def cut(page):
        rows = page.table("Time is that of")[1:]
        return {row[0] for row in rows if re.match(r"at least \d+:\d\din \d starts", row[2])}

    assert cut(unbroken) == set() and {*LOOPS} <= cut(broken)


def metrics(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def losses(directory):
    return [(row["step"], row["loss"]) for row in metrics(directory) if "loss" in row]


def test_the_table_has_every_system_under_its_protocols(runs):
    rows = json.loads((runs[0] / "table.json").read_text())
    found = {(row["system"], row["protocol"]) for row in rows}
    everywhere = [
        "random", "popularity", "cooccurrence", "keyword_overlap", "keyword_logit", "sasrec",
        "molar", "text_sft", "mmsrarec", "mmsrarec/cached", "mmsrarec/cached+sasrec",
        "bayes_learned_groups", "bayes_optimal", "oracle",
    ]  # fmt: skip
    protocols = ("full", "sampled@20", "sampled@30")
    assert found == {(name, p) for name in everywhere for p in protocols} | {
        ("mmsrarec+sasrec", "full")
    }
    for protocol in protocols[1:]:
        sampled = [row["system"] for row in rows if row["protocol"] == protocol]
        assert sampled == everywhere
    for row in rows:
        assert row["users"] == 16 and row["seed"] == 0
        assert all(0 <= row[name] <= 1 for name in ("hr@5", "ndcg@5", "mrr@5", "auc", "recall@10"))
    score = {row["system"]: row["auc"] for row in rows if row["protocol"] == "full"}
    assert score["oracle"] > score["bayes_optimal"] > score["random"]


def test_both_runs_have_the_same_page_of_results(runs):
    tables = []
    for run in runs[:2]:
        found = Page((run / "report.html").read_text())
        assert found.problems == [] and "steps are done." in found.words
        rows = {
            (row["protocol"], row["system"]): row
            for row in json.loads((run / "table.json").read_text())
        }
        for protocol in ("full", "sampled@20", "sampled@30"):
            head, *lines = found.table(f"Every metric, protocol {protocol}")
            for system, *values in lines:
                own = rows.pop((protocol, system))
                assert values == [f"{own[name.lower()]:.4f}" for name in head[1:]]
        assert not rows
        assert "What similar users took next" in found.words and "Mean rewards" in found.words
        charts = found.charts()
        assert set(charts) == {path.parent.name for path in run.glob("*/metrics.jsonl")}
        assert all(charts.values())
        tables.append([lines for caption, lines in found.tables if "Time is" not in caption])
    assert tables[0] == tables[1]


def test_every_logged_metric_is_explained(runs):
    found = logged(runs[0])
    assert {"loss/tokens", "reward/total", "validation/ndcg@10"} <= found
    assert found <= explained()


def test_every_item_has_one_summary(runs):
    text = (runs[1] / "summaries" / "summaries.jsonl").read_text()
    assert [json.loads(line)["item"] for line in text.splitlines()] == list(range(60))


def test_candidates_and_ranks_of_all_systems_are_of_the_same_users(runs):
    tables = [pq.read_table(p) for p in (runs[0] / "evaluation").glob("ranks-*-sampled@20.parquet")]
    assert len(tables) == 14
    for table in tables:
        np.testing.assert_array_equal(table["user"], tables[0]["user"])
        np.testing.assert_array_equal(table["target"], tables[0]["target"])
        assert set(table["candidates"].to_pylist()) == {21}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/quickstart.py:smok"], "no variant 'smok'"),
        (["--config=configs/movielens.py:smok"], "did you mean configs/movielens.py:smoke"),
        (["--config=configs/quickstart.py", "--config.sft.step=3"], "steps"),
        (["--config=configs/beauty.py"], "config.data.root is not set"),
        (["--config=configs/beauty.py", "--config.data.root=nowhere"], "nowhere: no such folder"),
        (["--config=configs/beauty.py", "--config.data.root=."], "config.model.path is not set"),
        (["--config=configs/quickstart.py", "--steps=stf"], "no step 'stf'"),
        (["--config=configs/quickstart.py", "--config.mesh.tensor=3"], "does not divide"),
    ],
)
def test_mistakes_get_one_line_that_says_what_to_do(tmp_path, arguments, message):
    status, said = launched.run(
        "launch/train.py", f"--workdir={tmp_path / 'run'}", *arguments, log=tmp_path / "log"
    )
    assert status == 2
    assert message in said and "Traceback" not in said


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    done = subprocess.run(
        [sys.executable, "launch/train.py", "--config=configs/quickstart.py:smok",
         f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT, env=os.environ | {"XLA_FLAGS": xla_flags.of_devices(1)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no variant 'smok'" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def scorer(runs):
    return Scorer(runs[0], make_mesh(devices=jax.devices()[:1]))


def test_typed_histories_of_test_users_are_scored_as_in_the_evaluation(runs, scorer):
    evaluation = runs[0] / "evaluation"
    frozen = Candidates.read(evaluation / "candidates-sampled@20.parquet")
    frozen = dataclasses.replace(
        frozen, rows=frozen.rows[:6], items=frozen.items[:6], positive=frozen.positive[:6]
    )
    run = scorer._run
    wanted = run.score_lists(
        "again", run.base.trained("again", "sft"), run.context, frozen.rows, frozen.items
    )
    ranks, _ = read_ranks(evaluation / "ranks-mmsrarec-sampled@20.parquet")
    for row, (user, position) in enumerate(frozen.rows):
        history = scorer.catalog.ids[scorer.histories.of(user)[:position]].tolist()
        candidates = scorer.catalog.ids[frozen.items[row]].tolist()
        found = scorer.scores(history, candidates, **known_users.before(scorer, user, position))
        np.testing.assert_allclose(found, wanted[row], rtol=0, atol=1e-5)
        rank = (found >= found[frozen.positive[row]]).sum()
        assert ranks.users[row] == user and ranks.ranks[row] == rank


def test_reranked_rows_equal_an_order_that_is_built_user_by_user(runs, scorer):
    """The sequential model's best 25 of 60, reordered by what the scorer says of them."""
    ranks, _ = read_ranks(runs[0] / "evaluation" / "ranks-mmsrarec-full.parquet")
    first, _ = read_ranks(runs[0] / "evaluation" / "ranks-sasrec-full.parquet")
    assert (ranks.ranks != first.ranks).any() and (first.ranks > 25).any()
    rows = scorer._run.test_targets()
    for row in [*range(5), int(np.flatnonzero(first.ranks > 25)[0])]:
        user, position = rows[row]
        past, target = np.split(scorer.histories.of(user)[: position + 1], [position])
        scores = np.array(scorer.recommender.scores(past[None])[0])
        scores[np.setdiff1d(past, target)] = -np.inf
        best = np.argsort(-scores, kind="stable")[:25]
        ids, known = scorer.catalog.ids, known_users.before(scorer, user, position)
        margins = scorer.scores(ids[past].tolist(), ids[best].tolist(), **known)
        wanted = (scores >= scores[target]).sum()
        if wanted <= 25:
            wanted = (margins >= margins[best == target]).sum()
        assert ranks.ranks[row] == wanted
        assert ranks.top[row].tolist() == best[np.argsort(-margins, kind="stable")[:20]].tolist()


def test_reranking_the_whole_catalog_is_full_ranking_by_the_mllm(runs, scorer, tmp_path):
    config = scorer._run.config
    evaluation = dataclasses.replace(config.evaluation, rerank=1000)
    run = MMSRARec(dataclasses.replace(config, evaluation=evaluation), runs[0], scorer._mesh)
    got = Reranker(run, tmp_path).ranks("mmsrarec", "sft", run.context)
    ids, margins = scorer.catalog.ids, np.zeros((16, 60), np.float32)
    for row, (user, position) in enumerate(run.test_targets()):
        past = ids[scorer.histories.of(user)[:position]].tolist()
        known = known_users.before(scorer, user, position)
        margins[row] = scorer.scores(past, ids.tolist(), **known)
    wanted = full_from_scores("x", margins, scorer.histories, run.test_targets(), top=20)
    for name in ("ranks", "candidates", "ties", "top"):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))
    cost = json.loads((tmp_path / "rerank-mmsrarec.json").read_text())
    assert (cost["users"], cost["items"]) == (16, 60)
    assert cost["users_per_second"] == pytest.approx(16 / cost["seconds"])


def test_a_history_of_nobody_finds_everybody_and_lists_may_be_long(scorer):
    ids = scorer.catalog.ids.tolist()
    found = scorer.scores(ids[:4], ids[10:40])
    assert found.shape == (30,) and np.isfinite(found).all()
    np.testing.assert_allclose(found[:21], scorer.scores(ids[:4], ids[10:31]), atol=1e-5)
    latest = int(scorer._split.train_end[0]) - 1  # of the prefixes of the first user that are known
    typed, following = np.split(scorer.histories.of(0)[: latest + 1], [latest])
    history = dataclasses.replace(
        scorer.histories, users=np.array([""]), offsets=[0, len(typed)], items=typed,
        timestamps=np.arange(len(typed)), ratings=None,
    )  # fmt: skip
    # the nearest prefix is that same prefix, unless the user is told apart
    assert scorer.neighbors(history).items[0, 0] == following
    known = dataclasses.replace(history, users=scorer.histories.users[:1])
    assert 0 not in scorer.neighbors(known).users and 0 in scorer.neighbors(history).users
    assert scorer.neighbors(history, -1.0).items.max() == -1  # nothing was known by then


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["nothing"], ["0"]), "history: the run knows no item 'nothing'"),
        (([], ["0"]), "history is empty"),
        ((["{id}"], []), "candidates is empty"),
        ((["{id}"], ["{id}"], {"times": [1.0, 2.0]}), "times: 2 for 1 items"),
        ((["{id}"], ["{id}"], {"user": "nobody"}), "user 'nobody' is not in the data"),
    ],
)
def test_mistakes_in_typed_histories(scorer, arguments, message):
    ids = [[x.format(id=scorer.catalog.ids[0]) for x in part] for part in arguments[:2]]
    options = arguments[2] if len(arguments) > 2 else {}
    with pytest.raises(UserError, match=message):
        scorer.scores(*ids, **options)


def test_a_run_that_is_not_finished_has_no_scorer(tmp_path):
    with pytest.raises(UserError, match="step evaluation has not finished"):
        Scorer(tmp_path)


# --- examples that read a finished run ------------------------------------------------------------


def test_the_notebook_shows_items_keywords_curves_and_lists(runs, monkeypatch, capsys):
    """On a finished run, which it does not run again."""
    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", lambda: None)
    try:
        names = example_scripts.run_notebook(runs[0], TINY, alone=True)
        figures = [plt.figure(number) for number in plt.get_fignums()]
        assert [len(figure.axes) for figure in figures] == [6, 6, 4, 6, 6, 6]
        picture = figures[0].axes[1].images[0].get_array()
        np.testing.assert_array_equal(picture, names["catalog"].image(1))
        for axis, (step, metric) in zip(figures[2].axes, names["CURVES"].items(), strict=True):
            (line,) = axis.lines
            assert metric in axis.get_title() and len(line.get_xdata()) >= 2
            assert line.get_xdata()[-1] == TINY[f"{step}.steps"]
    finally:
        plt.close("all")
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("mmsrarec", "sasrec", "popularity"))
    assert not (runs[0] / "superseded").exists()


def test_a_typed_history_on_the_command_line(runs, scorer, capsys):
    history, candidates = ["i0001", "i0002"], ["i0003", "i0007", "i0005", "i0011"]
    script = example_scripts.Script("score_history")
    try:
        values = dict(workdir=runs[0], history=",".join(history))
        script.run(**values, candidates=",".join(candidates), top=3)
        among = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
        script.run(**values, top=5)
        listed = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    finally:
        script.close()
    scores = scorer.scores(history, candidates)
    best = np.argsort(-scores)[:3]
    assert [item for _, item in among] == [candidates[i] for i in best]
    np.testing.assert_allclose([float(score) for score, _ in among], scores[best], atol=1e-3)
    assert len(listed) == 5 and not set(listed) & set(history)
    with pytest.raises(UserError, match="an item is named twice"):
        mmsrec_jax.recommend(runs[0], history, ["i0003", "i0003"])
