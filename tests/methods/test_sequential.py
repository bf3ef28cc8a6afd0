"""A sequential recommender by itself on a tiny shop: data, training, ranks and the table."""

import copy
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from html_check import Page

from configs import base, quickstart
from mmsrec_jax import methods
from mmsrec_jax.data import build
from mmsrec_jax.methods.export import export
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import from_config
from mmsrec_jax.sequential import standalone
from mmsrec_jax.sequential.recommender import SequentialRecommender

SYSTEMS = ("random", "popularity", "cooccurrence", "sasrec")
PROTOCOLS = ("full", "sampled@5", "sampled@9")
TRUTH = ("bayes_learned_groups", "bayes_optimal", "oracle")


@pytest.fixture(scope="module")
def config():
    config = base.get_config("sasrec")
    config.data.source = "toyshop"
    config.data.toyshop.update(num_users=150, num_items=60, num_groups=3)
    config.sasrec.update(
        length=8, dim=16, layers=1, mlp_dim=16, steps=20, evaluate_every=10, batch_size=8,
        loss="sampled_softmax", negatives=8,
    )  # fmt: skip
    config.evaluation.update(users=40, negatives=(5, 9), k=(1, 5))
    return config


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sequential") / "run"
    methods.run(config, workdir)
    return workdir


def test_every_system_is_ranked_in_the_catalog_and_among_the_candidates(workdir):
    rows = json.loads((workdir / "table.json").read_text())
    wanted = {(name, p) for name in (*SYSTEMS, *TRUTH) for p in PROTOCOLS}
    assert {(row["system"], row["protocol"]) for row in rows} == wanted
    order = [row["protocol"] for row in rows]  # the headline comes first
    assert order == [protocol for protocol in PROTOCOLS for _ in (*SYSTEMS, *TRUTH)]
    for name in SYSTEMS:
        full, listed, more = (
            pq.read_table(workdir / "evaluation" / f"ranks-{name}-{p}.parquet") for p in PROTOCOLS
        )
        np.testing.assert_array_equal(full["user"], listed["user"])
        np.testing.assert_array_equal(full["user"], more["user"])
        assert set(more["candidates"].to_pylist()) == {10}
        assert len(full) == 40 and set(listed["candidates"].to_pylist()) == {6}
        assert np.min(full["candidates"]) > 40


def test_raw_ids_stand_beside_the_ranks(config, workdir):
    catalog, histories, _ = build.open_built(from_config(Settings, config).data, workdir / "data")
    for name, ids in (("item", catalog.ids), ("user", histories.users)):
        found = pq.read_table(workdir / "evaluation" / f"{name}_ids.parquet").to_pydict()
        assert found == {name: list(range(len(ids))), "id": ids.tolist()}


def test_the_page_of_the_run_has_its_numbers_users_and_curves(workdir):
    found = Page((workdir / "report.html").read_text())
    assert found.problems == [] and "All 3 steps are done." in found.words
    rows = {row["system"]: row for row in json.loads((workdir / "table.json").read_text())[:7]}
    head, *lines = found.table("Every metric, protocol full")
    for line in lines:
        own = [f"{rows[line[0]][name.lower()]:.4f}" for name in head[1:]]
        assert line[1:] == own
    assert [line[0] for line in lines] == [*SYSTEMS, *TRUTH] and len(lines) == 7
    compared = found.table("40 users, protocol full")
    differences = {line[0].partition(" ")[0]: line[2] for line in compared[1:]}
    assert differences["popularity"] == "–" and " to " in differences["sasrec"]
    assert ["config.sasrec.dim", "64", "16"] in found.table("settings of the last start")[1:]
    assert {"users", "failures", "slices", "items", "data", "training"} <= set(found.ids)
    drawn = [given["aria-label"] for tag, given in found.seen if tag == "svg"]
    assert any(label.startswith("Validation") and "ndcg@10: " in label for label in drawn)
    told = found.table("Time is that of")[1:]
    assert [row[3] for row in told] == ["8 × cpu"] * 3


def test_a_finished_run_is_not_run_again_but_a_new_seed_is(config, workdir, tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    workdir = shutil.copytree(workdir, tmp_path / "run")
    methods.run(config, workdir)
    done = [record.getMessage() for record in caplog.records]
    for step in ("data", "sasrec", "evaluation"):
        assert any(line.startswith(f"step {step} is finished") for line in done)
    assert not any("begins" in line for line in done)
    before = json.loads((workdir / "sasrec" / "step.json").read_text())
    again = config.copy_and_resolve_references()
    again.sasrec.seed = 1
    methods.run(again, workdir, only=["data", "sasrec"])
    after = json.loads((workdir / "sasrec" / "step.json").read_text())
    assert before["fingerprint"] != after["fingerprint"] and after["finished"]


def test_the_page_tells_steps_that_another_run_ran(config, workdir, tmp_path):
    """Also when nothing runs after it took them."""
    methods.run(config, tmp_path, only=["data"])
    methods.run(config, tmp_path, reuse=[workdir])
    told = Page((tmp_path / "report.html").read_text()).table("Time is that of")[1:]
    assert [row[1].startswith("donetaken from ") for row in told] == [False, True, True]
    ran = Page((workdir / "report.html").read_text()).table("Time is that of")[1:]
    assert [row[2:] for row in told[1:]] == [row[2:] for row in ran[1:]]


def test_several_seeds_give_one_table_of_the_same_users(config, tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    config = copy.deepcopy(config)
    config.seeds, config.evaluation.negatives = (3, 1), (5,)
    methods.run(config, tmp_path)
    table = {(row["system"], row["protocol"]): row for row in json.loads(read(tmp_path))}
    assert set(table) == {(s, p) for s in (*SYSTEMS, *TRUTH) for p in PROTOCOLS[:2]}
    runs = [json.loads(read(tmp_path / f"seed-{seed}")) for seed in (3, 1)]
    for (system, protocol), row in table.items():
        values = [
            {(r["system"], r["protocol"]): r for r in rows}[system, protocol]["auc"]
            for rows in runs
        ]
        assert row["seeds"] == (2 if system == "sasrec" else 1) and row["users"] == 40
        assert row["auc"]["mean"] == pytest.approx(np.mean(values))
        if system == "sasrec":  # the row that the others are compared with
            assert values[0] != values[1] and row["baseline"] is None
        else:
            assert values[0] == values[1] and row["baseline"] == "sasrec"
            assert row["auc"]["low"] <= row["auc"]["difference"] <= row["auc"]["high"]
    page = Page((tmp_path / "report.html").read_text(), linked=True)
    assert page.problems == [] and "sasrec" in [
        row[0] for row in page.table("40 users, protocol full")[1:]
    ]
    said = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("sasrec ") and " ± " in line for line in said)
    assert f"step data is taken from {tmp_path / 'seed-3'}" in said
    fields = [json.loads((tmp_path / f"seed-{n}/sasrec/step.json").read_text()) for n in (3, 1)]
    assert [record["config"]["sasrec"]["seed"] for record in fields] == [3, 1]
    caplog.clear()
    before = read(tmp_path)
    methods.run(config, tmp_path)
    assert not any("begins" in record.getMessage() for record in caplog.records)
    assert read(tmp_path) == before and config.seed == 0


def read(workdir):
    return (workdir / "table.json").read_text()


def test_gru4rec_retrieves_for_mmsrarec(tmp_path):
    config = quickstart.get_config()
    config.sequential_model = "gru4rec"
    config.data.toyshop.update(num_users=150, num_items=60, num_groups=3)
    config.cached.update(num_users=8, num_items=16)
    config.gru4rec.update(steps=4, evaluate_every=4, batch_size=8, dim=8, hidden=8)
    methods.run(config, tmp_path, only=["data", "gru4rec", "retrieval"])
    found = pq.read_table(tmp_path / "retrieval" / "neighbors.parquet")
    assert found.num_rows > 150 and (tmp_path / "gru4rec" / "model" / "config.json").exists()


def test_a_method_that_does_not_exist():
    with pytest.raises(UserError, match="config.method='model' is not known"):
        methods.find("model")


def test_the_trained_model_is_exported_with_the_ids_and_the_metrics(config, workdir, tmp_path):
    pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers")
    export(workdir, tmp_path / "out", step="sasrec", top_k=7)
    found = standalone.Recommender(tmp_path / "out")
    settings = from_config(Settings, config).data
    catalog = build.open_built(settings, workdir / "data").catalog
    assert found.ids == catalog.ids.tolist()
    ((first, *_),) = found.top([found.ids[:3]])
    scores = np.array(
        SequentialRecommender.load(workdir / "sasrec" / "model").scores(np.array([[0, 1, 2]]))
    )
    scores[0, :3] = -np.inf
    assert first[0] == found.ids[scores[0].argmax()]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "on the data `toyshop`" in card and "| sasrec | full | 40 |" in card
