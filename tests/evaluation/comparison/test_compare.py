"""Finished runs side by side: grouped, refused where they differ, and written in every form."""

import csv
import dataclasses
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xla_flags
from html_check import Page

from configs import quickstart
from mmsrec_jax.data import build
from mmsrec_jax.evaluation import baselines, metrics, protocols, ranking, slices
from mmsrec_jax.evaluation.beyond_accuracy import Training
from mmsrec_jax.evaluation.comparison import compare, points
from mmsrec_jax.evaluation.comparison.points import Measured
from mmsrec_jax.evaluation.results import Results
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import as_dict, from_config
from mmsrec_jax.runtime.workdir import Step, run_steps

ROOT = Path(__file__).resolve().parents[3]


def make_run(workdir, *, seed=0, noise=1.0, negatives=20, data_seed=0, k=(5, 10)):
    """A finished workdir whose system `taste` is co-occurrence with some noise."""
    config = quickstart.get_config()
    with config.unlocked():
        config.data.toyshop.update(num_users=120, num_items=50, num_groups=3, seed=data_seed)
        config.update(seed=seed)
        config.evaluation.update(negatives=(negatives,), seed=0, k=k)
        config.data.update(seed=data_seed)
        config.sft.learning_rate = 1e-3 + 1e-3 * noise  # any field in which two configs differ
    settings = from_config(Settings, config)

    def evaluation(directory):
        catalog, histories, split = build.open_built(settings.data, workdir / "data")
        rows = split.test
        frozen = protocols.sampled(histories, rows, n=negatives, seed=0, num_items=50)
        frozen.write(protocols.candidates_file(directory, frozen.name))
        results = Results(
            directory, data=build.fingerprint(workdir / "data"), split=split.kind, seed=seed,
            config=as_dict(settings),
        )  # fmt: skip
        seen = baselines.Cooccurrence(histories, split, 50)
        luck = baselines.Random(50, seed + 100)
        taste = types.SimpleNamespace(
            name="taste", scores=lambda h, times: seen.scores(h) + noise * luck.scores(h)
        )
        for system in (baselines.Popularity(histories, split, 50), taste):
            results.add(
                system.name, frozen.name, frozen.digest,
                lambda s=system: ranking.full_and_sampled(s, histories, [frozen])[1],
            )  # fmt: skip
            results.add(
                system.name, "full", protocols.full_digest(rows),
                lambda s=system: ranking.full(s, histories, rows, top=max(k)),
            )  # fmt: skip

    run_steps(
        workdir,
        [
            Step("data", lambda d: build.build(settings.data, d), {"data": as_dict(settings.data)}),
            Step("evaluation", evaluation, {"evaluation": as_dict(settings.evaluation)}, ["data"]),
        ],
    )
    return workdir


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {
        "a": make_run(root / "a"),
        "a1": make_run(root / "a1", seed=1),
        "b": make_run(root / "b", noise=0.0),
    }


def rows_of(out):
    return json.loads((out / "comparison.json").read_text())["rows"]


def stored(workdir, system="taste", protocol="full"):
    return ranking.read_ranks(workdir / "evaluation" / f"ranks-{system}-{protocol}.parquet")[0]


def test_every_number_of_two_runs(runs, tmp_path):
    text = compare.run(
        [runs["a"], runs["b"]], cutoffs=(5, 10), resamples=200, out=tmp_path, baseline="taste:b"
    )
    rows = rows_of(tmp_path)
    assert {row["system"] for row in rows} == {"popularity", "taste:a", "taste:b"}
    assert {row["protocol"] for row in rows} == {"full", "sampled@20"}
    catalog, histories, split = build.open_built(build.DataSettings(), runs["a"] / "data")
    training = Training.of(histories, split, 50)
    first, second = stored(runs["a"]), stored(runs["b"])
    parts = slices.slices(first, training, split)
    found = {
        (row["slice"], row["metric"]): row
        for row in rows
        if row["protocol"] == "full" and row["system"] == "taste:a"
    }
    for part, inside in parts.items():
        for metric in metrics.names((5, 10)):
            row, mine = found[part, metric], metrics.per_row(first, metric)[inside]
            assert row["users"] == inside.sum()
            if not inside.any():
                assert row["value"] is row["difference"] is None
                continue
            other = metrics.per_row(second, metric)[inside]
            assert np.isclose(row["value"], mine.mean())
            assert np.isclose(row["difference"], (mine - other).mean())
            assert row["low"] <= row["difference"] <= row["high"]
    assert found["all", "coverage@10"]["low"] is None
    assert found["all", "coverage@10"]["difference"] is not None
    assert not any(row["difference"] for row in rows if row["system"] == "taste:b")

    lists = [row for row in csv.DictReader((tmp_path / "comparison.csv").open())]
    assert len(lists) == len(rows)
    assert [row["value"] for row in lists] == [
        "" if row["value"] is None else str(row["value"]) for row in rows
    ]
    latex = (tmp_path / "full.tex").read_text()
    assert r"\begin{tabular}{lrrr}" in latex and "ndcg@10" in latex
    assert (tmp_path / "full.png").read_bytes()[:4] == b"\x89PNG"
    assert "difference to taste:b" in (tmp_path / "sampled@20.svg").read_text()
    assert "leave_one_out: other users' training interactions may be later" in text
    assert "gini@10" in text and "tail items" in text


def test_seeds_of_one_config_are_one_system(runs, tmp_path):
    compare.run([runs["a"], runs["a1"]], cutoffs=(5,), resamples=50, out=tmp_path)
    (row,) = (
        row
        for row in rows_of(tmp_path)
        if (row["system"], row["slice"], row["protocol"], row["metric"])
        == ("taste", "all", "full", "ndcg@5")
    )
    seeds = [metrics.per_row(stored(runs[name]), "ndcg@5").mean() for name in ("a", "a1")]
    assert seeds[0] != seeds[1] and row["seeds"] == 2
    assert np.isclose(row["value"], np.mean(seeds))
    assert np.isclose(row["sd"], np.std(seeds, ddof=1))
    popularity = [r for r in rows_of(tmp_path) if r["system"] == "popularity"]
    assert {r["seeds"] for r in popularity} == {1}  # the same in both: once


def test_same_input_same_files(runs, tmp_path):
    for name in ("x", "y"):
        compare.run([runs["a"]], cutoffs=(5,), resamples=50, out=tmp_path / name)
    for path in (tmp_path / "x").iterdir():
        assert path.read_bytes() == (tmp_path / "y" / path.name).read_bytes(), path.name


def test_external_scores_stand_beside_the_runs(runs, tmp_path):
    """Popularity, written as another library would, ranks as popularity does."""
    catalog, histories, split = build.open_built(build.DataSettings(), runs["a"] / "data")
    counts = Training.of(histories, split, 50).interactions
    lines = [f"{u},{i},{counts[n]}" for u in histories.users for n, i in enumerate(catalog.ids)]
    file = tmp_path / "theirs.csv"
    file.write_text("\n".join(["user,item,score", *lines]) + "\n")
    out = tmp_path / "out"
    compare.run([runs["a"]], cutoffs=(5,), resamples=50, out=out, external_files=[f"theirs={file}"])
    rows = [row for row in rows_of(out) if row["system"] == "theirs" and row["baseline"]]
    assert {row["protocol"] for row in rows} == {"full", "sampled@20"}
    assert all(row["difference"] in (0, None) for row in rows)
    ranks, _ = ranking.read_ranks(out / "ranks-theirs-full.parquet")
    for field in dataclasses.fields(ranks):
        own = getattr(stored(runs["a"], "popularity"), field.name)
        np.testing.assert_array_equal(getattr(ranks, field.name), own)
    # The files beside the ranks turn their numbers into the ids of the file that was given.
    ids = {}
    for kind in ("user", "item"):
        table = pq.read_table(out / f"{kind}_ids.parquet").to_pydict()
        ids[kind] = dict(zip(table[kind], table["id"], strict=True))
    scores = {tuple(pair): int(score) for *pair, score in (line.split(",") for line in lines)}
    for user, target, top in zip(ranks.users, ranks.targets, ranks.top, strict=True):
        id, known = ids["user"][user], catalog.ids[histories.of(user)]
        assert ids["item"][target] == known[-1]
        others = (score for (u, i), score in scores.items() if u == id and i not in known[:-1])
        best = sorted(others, reverse=True)[: len(top)]
        assert [scores[id, ids["item"][item]] for item in top] == best


def test_runs_that_differ_are_refused(runs, tmp_path):
    other_data = make_run(tmp_path / "data", data_seed=5)
    with pytest.raises(UserError, match="a and data cannot be compared under full: their data"):
        compare.run([runs["a"], other_data], cutoffs=(5,), out=tmp_path / "out")
    table = runs["a"] / "evaluation" / "ranks-taste-full.parquet"
    ranks, stored_as = ranking.read_ranks(table)
    half = metrics.Ranks(*(getattr(ranks, f.name)[:9] for f in dataclasses.fields(ranks)))
    other = make_run(tmp_path / "other")
    ranking.write_ranks(
        other / "evaluation" / "ranks-added-full.parquet",
        half,
        **stored_as | {"candidates": "others"},
    )
    with pytest.raises(UserError, match="a and other cannot .*: their candidates differ"):
        compare.run([runs["a"], other], cutoffs=(5,), out=tmp_path / "out")
    ranking.write_ranks(other / "evaluation" / "ranks-added-full.parquet", half, **stored_as)
    with pytest.raises(UserError, match="file is damaged"):
        compare.run([runs["a"], other], cutoffs=(5,), out=tmp_path / "out")
    ranking.write_ranks(
        other / "evaluation" / "ranks-added-full.parquet", half, system="taste", seed=0
    )
    with pytest.raises(UserError, match="does not say its config: an older version wrote it"):
        compare.run([runs["a"], other], cutoffs=(5,), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "sasrec"}, "--baseline=sasrec is none of popularity, taste"),
        ({"cutoffs": (5, 60)}, "k=60 is more than the"),
        ({"cutoffs": (21, 22)}, "k=22 is more than the 21 items"),
        ({"resamples": 0}, "--bootstrap=0"),
        ({"external_files": ["x"]}, "--external=x: write --external=NAME=FILE"),
        ({"external_files": ["x=none.csv"]}, "none.csv: no such file"),
    ],
)
def test_mistakes_are_named(runs, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        compare.run([runs["a"]], **{"resamples": 20, "out": tmp_path, **options})


def test_a_baseline_that_several_runs_have_is_to_be_chosen(runs, tmp_path):
    with pytest.raises(UserError, match="--baseline=taste: .*choose one of taste:a, taste:b"):
        compare.run([runs["a"], runs["b"]], cutoffs=(5,), out=tmp_path, baseline="taste")


def test_unfinished_runs_are_named(runs, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such workdir"):
        compare.run([tmp_path / "nowhere"], out=tmp_path)
    with pytest.raises(UserError, match="step evaluation has not finished"):
        compare.run([tmp_path], out=tmp_path)
    with pytest.raises(UserError, match="a run is named twice"):
        compare.run([runs["a"], runs["a"]], out=tmp_path)


def test_cutoffs_are_counts():
    assert compare.parse_cutoffs(["10", " 5", "5"]) == (5, 10)
    for text in ("five", "-1", "1.5", ""):
        with pytest.raises(UserError, match="write cut-offs as counts"):
            compare.parse_cutoffs(["5", text])


def test_the_command(runs, tmp_path):
    done = subprocess.run(
        [sys.executable, "launch/evaluate.py", "--compare", str(runs["a"]), str(runs["b"]),
         "--k=5", "--bootstrap=20", f"--out={tmp_path}"],
        cwd=ROOT, env=os.environ | {"XLA_FLAGS": xla_flags.of_devices(1)},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "difference to popularity, 95% paired bootstrap" in done.stdout
    assert (tmp_path / "comparison.csv").is_file()
    page = Page((tmp_path / "comparison.html").read_text())
    assert page.problems == [] and "run.json: it is missing" in page.words  # settings, curves


def test_points_of_a_sweep_with_and_without_seeds(runs):
    """Intervals against a bootstrap over users written plainly here, where there is one seed."""
    several = Measured("several", "taste", (runs["a"], runs["a1"]))
    one = Measured("one", "taste", (runs["b"],))
    rows = points.table([one, several], (5, 10), resamples=4000)
    found = {(row.point, row.protocol, row.metric): row for row in rows}
    assert len(found) == len(rows) and {row.protocol for row in rows} == {"full", "sampled@20"}
    for protocol in ("full", "sampled@20"):
        gains = [
            [metrics.per_row(stored(runs[name], protocol=protocol), "ndcg@10") for name in names]
            for names in (["b"], ["a", "a1"])
        ]
        first, other = (found[name, protocol, "ndcg@10"] for name in ("one", "several"))
        assert (first.seeds, first.sd, first.difference) == (1, None, None)
        drawn = np.random.default_rng(1).integers(0, 120, (4000, 120))
        wanted = np.quantile(gains[0][0][drawn].mean(1), [0.025, 0.975])
        np.testing.assert_allclose([first.low, first.high], wanted, atol=0.01)
        assert other.seeds == 2 and other.value == pytest.approx(np.mean(gains[1]))
        assert other.sd == pytest.approx(np.std(np.mean(gains[1], axis=1), ddof=1))
        assert other.low < other.value < other.high
        difference = np.mean(gains[1]) - np.mean(gains[0])
        assert other.difference == pytest.approx(difference) and other.reference == "one"
        paired = (np.mean(gains[1], axis=0) - gains[0][0])[drawn].mean(1)
        narrow = np.quantile(paired, [0.025, 0.975])  # seeds are not drawn
        assert (
            other.difference_low <= narrow[0] + 0.01 and narrow[1] - 0.01 <= other.difference_high
        )
        assert other.difference_high - other.difference_low < 3 * (narrow[1] - narrow[0])
    with pytest.raises(UserError, match="has no ranks of best"):
        points.table([Measured("one", "best", (runs["b"],))], (5,))
