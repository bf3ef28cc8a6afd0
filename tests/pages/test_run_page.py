"""The run's page: sound HTML, numbers of table.json, hostile texts, every state, limits."""

import importlib.metadata
import json
import os
import re
import sys
import time
import tomllib
from pathlib import Path

import jax
import numpy as np
import page_run
import pytest
from html_check import Page
from page_run import SYSTEMS, PageRun

from mmsrec_jax.data.records import Catalog, Dataset, Histories, Item
from mmsrec_jax.data.splits import leave_one_out
from mmsrec_jax.evaluation.comparison import compare
from mmsrec_jax.methods import page
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.pages import compare_page, document, items, results, run_folder
from mmsrec_jax.pages.markup import clipped
from mmsrec_jax.pages.run_page import RunPage
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import as_dict

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_after_every_step_the_page_is_sound_and_says_how_far_the_run_is(states):
    _, seen = states
    assert list(seen) == list(page_run.STEPS)
    for number, (_, found) in enumerate(seen.values(), 1):
        assert found.problems == []
        left = len(page_run.STEPS) - number
        assert (f"{number} of 7 steps are done; next: " in found.words) is bool(left)
        states_told = [row[1] for row in found.table("Time is that of")[1:]]
        assert states_told == ["done"] * number + ["not begun"] * left
    assert "results" not in seen["retrieval"][1].ids and "results" in seen["evaluation"][1].ids
    assert {"items", "data", "run"} <= set(seen["data"][1].ids)
    assert "training" not in seen["data"][1].ids and "training" in seen["summarizer"][1].ids


def test_numbers_are_those_of_the_table_and_of_the_comparison(done, tmp_path):
    run, _, found = done
    rows = {
        row["system"]: row for row in json.loads((run.folder / "evaluation/table.json").read_text())
    }
    head, *lines = found.table("Every metric, protocol full")
    assert [line[0] for line in lines] == list(SYSTEMS)
    for line in lines:
        for name, value in zip(head[1:], line[1:], strict=True):
            assert value == f"{rows[line[0]][name.lower()]:.4f}"
    measured, _ = compare.table(
        [run.folder], baseline="sasrec", cutoffs=(10,), ties="pessimistic", resamples=10_000, seed=0
    )
    wanted = {(row.slice, row.system, row.metric): row for row in measured}
    _, *lines = found.table("30 users, protocol full")
    assert len(lines) == 4 and lines[0][0] == "mmsrarec"
    for system, ndcg, gain, hit, gain_of_hits in lines:
        assert (ndcg, hit) == tuple(f"{rows[system][name]:.4f}" for name in ("ndcg@10", "hr@10"))
        for name, cell in (("ndcg@10", gain), ("hr@10", gain_of_hits)):
            row = wanted["all", system, name]
            assert cell == ("–" if system == "sasrec" else told(row))
    for part, users, ndcg, gain, *_ in found.table("mmsrarec, among the whole catalog")[1:]:
        row = wanted[part, "mmsrarec", "ndcg@10"]
        assert int(users) == row.users
        if row.users:
            assert (ndcg, gain) == (f"{row.value:.4f}", told(row))


def told(row):
    return f"{row.difference:+.4f}{row.low:+.4f} to {row.high:+.4f}"


def test_many_users_have_the_interval_of_the_normal_distribution(monkeypatch):
    rng = np.random.default_rng(0)
    own, base = (
        results.Ranks(
            np.arange(900),
            np.zeros(900),
            rng.integers(1, high, 900),
            np.full(900, 50),
            np.zeros(900),
        )
        for high in (20, 50)
    )
    (drawn,) = results.differences([own], base, ["ndcg@10", "hr@10"])
    monkeypatch.setattr(results, "FEW_USERS", 800)
    (normal,) = results.differences([own], base, ["ndcg@10", "hr@10"])
    for one, other in zip(drawn, normal, strict=True):
        assert one.value == other.value
        assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=2e-3)


def test_every_step_that_logs_metrics_has_its_curves(done):
    """Each metric from its first to its last value, or among those that are 0 throughout."""
    run, _, found = done
    charts = found.charts()
    assert list(charts) == ["summarizer", "sasrec"]
    assert set(charts) == {path.parent.name for path in run.folder.glob("*/metrics.jsonl")}
    told = {step: "; ".join(labels) for step, labels in charts.items()}
    for each in ("loss: 0.1 to 0.1", "total: 0.01 to 10", "length: -4 to -4"):
        assert each in told["summarizer"]
    for each in ("loss: 5 to 0.005", "steps: 7 to 7", "ndcg@10: 0.25 to 0.25"):
        assert each in told["sasrec"]
    assert "loss: 5" not in told["summarizer"] and "total" not in told["sasrec"]


def test_versions_and_devices_are_those_that_ran(done):
    told = facts_told(done[2])
    assert told["mmsrec_jax"] == tomllib.loads(PROJECT.read_text())["project"]["version"]
    assert told["jax"] == importlib.metadata.version("jax")
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    assert told["devices"] == f"{jax.device_count()} × cpu" and told["processes"] == "1"
    steps = [row[3] for row in done[2].table("Time is that")[1:]]
    assert steps == [told["devices"]] * len(page_run.STEPS)


def test_hostile_texts_stay_text(done):
    _, text, found = done
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>\\u202e\\u0000&amp;" in found.words
    assert "\u202e" not in text and "\x00" not in text
    assert found.words.count("<b>red</b>") > 5 and "<i>word" in found.words
    policy = [
        a["content"] for tag, a in found.seen if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy[0].startswith("default-src 'none'; img-src data:")
    assert len(text) < 1_000_000  # titles of 10,000 characters are cut


def test_users_are_shown_with_history_neighbors_lists_and_truth(done):
    run, _, found = done
    assert sum(given.get("class") == "person" for _, given in found.seen) == 10
    ranks = results.ranking.read_ranks(run.folder / "evaluation/ranks-mmsrarec-full.parquet")[0]
    user = int(np.sort(np.random.default_rng(0).choice(30, 10, replace=False))[0])
    assert (
        f"u{user}<b>true item at rank {ranks.ranks[user]} of {ranks.candidates[user]}"
        in found.words
    )
    assert found.words.count("What the user states") == 10
    assert f"motto: motto {user} </title></style><script>alert" in found.words
    in_list = [ranks.targets[row] in ranks.top[row] for row in range(30)]
    assert sum(in_list) > 15
    assert (
        "What similar users took next" in found.words
        and "a similar user took it next" in found.words
    )
    assert "color1 × " in found.words
    assert len(found.pictures) > 100
    assert all(p["src"].startswith("data:image/png;base64,") for p in found.pictures)


def test_cards_are_of_the_items_whose_keywords_were_scored(done):
    """Those with an odd number, spread evenly over all of them."""
    _, _, found = done
    told = re.findall(r"image contrastive (\d\.\d\d)total (-\d+\.00)", found.words)
    assert len(told) == items.CARDS
    numbers = [round(float(share) * 100) for share, _ in told]
    assert [float(total) for _, total in told] == [-n for n in numbers]
    assert all(n % 2 for n in numbers) and max(numbers) > page_run.ITEMS * 0.8


def test_a_picture_is_that_of_its_item(done):
    """Pictures have one color, which names the item: the first user's history, item by item."""
    run, _, found = done
    user = int(np.sort(np.random.default_rng(0).choice(30, 10, replace=False))[0])
    history = run.dataset.histories.of(user)[: page_run.LENGTH - 1].tolist()
    pictured = [item for item in history if item % 5]
    assert (
        pictured and [page_run.color(p["src"]) for p in found.pictures[: len(pictured)]] == pictured
    )
    boxes = [given["aria-label"] for _, given in found.seen if given.get("class") == "picture none"]
    assert boxes and all(label.endswith(": no picture") for label in boxes)


def test_failures_are_the_worst_of_all(done):
    run, _, found = done
    ranks = results.ranking.read_ranks(run.folder / "evaluation/ranks-mmsrarec-full.parquet")[0]
    worst = int(np.argmax(ranks.ranks / ranks.candidates))
    failures = found.words[found.words.index("stood worst") :]
    wanted = f"rank {ranks.ranks[worst]} of {ranks.candidates[worst]} for user u{worst}<b>"
    assert wanted in failures.replace("\n", "")
    histories, target = run.dataset.histories, ranks.targets[worst]
    count = sum((histories.of(u)[: page_run.LENGTH - 2] == target).sum() for u in range(30))
    assert f"{wanted}{count} training interactions have it" in failures


def test_an_mllm_without_lists_shows_those_of_the_sequential_model(tmp_path):
    """As in the joint form, whose MLLM ranks candidates alone."""
    run = PageRun(tmp_path / "run", page_run.config(), protocols={"mmsrarec": "sampled@5"})
    run.run()
    found = Page(page.write(run.folder).read_text())
    assert found.problems == []
    assert "those of sasrec, protocol full; mmsrarec has no such lists" in found.words
    assert "by mmsrarec, sampled@5: " in found.words
    assert "The 10 test users of mmsrarec, protocol sampled@5" in found.words
    assert [row[0] for row in found.table("protocol sampled@5, best first")[1:]] == ["mmsrarec"]


def test_a_page_is_made_again_from_the_folder_alone(done):
    run, text, _ = done
    before = (run.folder / "report.html").stat().st_ino
    assert page.write(run.folder) == run.folder / "report.html"
    assert (run.folder / "report.html").stat().st_ino != before
    assert (run.folder / "report.html").read_text() == text


def test_what_an_outdated_step_left_is_not_shown(done, tmp_path):
    run, *_ = done
    again = PageRun(tmp_path / "run", run.config)
    again.run()
    (again.folder / "sasrec" / "step.json").unlink()
    found = {step.name: step.state for step in run_folder.read(again.folder).steps}
    assert found["sasrec"] == "not begun" and found["data"] == "done"
    assert found["evaluation"] == found["retrieval"] == "to run again"
    assert "results" not in Page(page.write(again.folder).read_text()).ids
    heading = "keywords of the text"
    assert heading in Page(page.write(again.folder).read_text()).words
    (again.folder / "summaries" / "step.json").unlink()
    assert heading not in Page(page.write(again.folder).read_text()).words


def steps_told(folder):
    """What the page says of each step: its name -> state, time, devices, device hours, ended."""
    return {
        name: rest for name, *rest in Page(page.write(folder).read_text()).table("Time is that")
    }


def facts_told(found):
    """The facts in the head of a page: name -> value."""
    (facts,) = (each for each in found.root.all("header") for each in each.all("dl"))
    return {pair.parts[0].text: pair.parts[1].text for pair in facts.parts}


def recorded(folder, step, **changes):
    """Puts values into the record of a step."""
    path = folder / step / "step.json"
    record = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(record))
    return record


def test_time_and_devices_of_steps_that_were_killed_or_taken_from_another_run(tmp_path):
    class Killed(BaseException):
        pass

    def killed(folder):
        (folder / "half").touch()
        raise Killed

    first, second = (PageRun(tmp_path / name, page_run.config()) for name in ("first", "second"))
    first.run(only=["data", "users", "summarizer"])
    first.summaries = killed
    with pytest.raises(Killed):
        first.run()
    for name, at in (("step.json", 1000), ("half", 1060)):
        os.utime(first.folder / "summaries" / name, (at, at))
    del first.summaries
    assert steps_told(first.folder)["summaries"] == ["not finished", "–", "–", "–", "–"]
    first.run()
    on_four = {"devices": 4, "device": "TPU v5 lite", "jax": "0.10.2"}
    ended = {**on_four, "seconds": 1800.0, "ended": "2026-11-26T22:35:01+00:00"}
    recorded(first.folder, "data", starts=[ended])
    recorded(first.folder, "users", starts=[ended | {"seconds": 1.0}])
    killed_start, _ = recorded(first.folder, "summaries")["starts"]
    assert killed_start["seconds"] == 60
    ended = {**on_four, "seconds": 3600.0, "ended": "2026-11-27T01:02:03+00:00"}
    recorded(first.folder, "summaries", starts=[killed_start, ended])
    second.run(only=["data", "users", "summaries", "summarizer"], reuse=[first.folder])
    second.run()
    own = steps_told(first.folder)
    assert own["data"] == ["done", "30:00", "4 × TPU v5 lite", "2", "2026-11-26 22:35 UTC"]
    assert own["users"][:4] == ["done", "0:01", "4 × TPU v5 lite", "0.00111"]
    both = "8 × cpu, 4 × TPU v5 lite"
    hours = f"at least {60 * 8 / 3600 + 4:.3g}"
    told = ["at least 1:01:00in 2 starts", both, hours, "2026-11-27 01:02 UTC"]
    assert own["summaries"] == ["done", *told]
    again = steps_told(second.folder)
    origin = f"donetaken from {clipped(str(first.folder), 60)}"
    assert again["data"] == [origin, *own["data"][1:]] and again["summaries"] == [origin, *told]
    assert again["retrieval"][0] == "done" and again["retrieval"][2] == "8 × cpu"
    head = facts_told(Page(page.write(second.folder).read_text()))
    assert head["devices"] == "4 × TPU v5 lite, 8 × cpu"
    assert head["time of all steps"] == "at least 1:31:01at least 1:31:01 in other runs"
    of_taken = f"at least {60 * 8 / 3600 + 6:.3g}"
    assert head["device hours"] == f"{of_taken}{of_taken} in other runs"


def test_a_page_that_fails_is_one_warning(tmp_path, caplog, monkeypatch):
    run = PageRun(tmp_path / "run", page_run.config())
    writer = RunPage(run.folder, lambda: run.dataset, as_dict(Settings()))

    def broken(*_):
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr(items, "data_section", broken)
    run.run(lambda step: document.attempt(writer.write), only=["data", "summarizer"])
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warned) == 2 and all(line.startswith("no page of this run: ") for line in warned)
    assert "first line" in warned[0] and "\n" not in warned[0]
    assert run_folder.read(run.folder).done >= {"data", "summarizer"}
    monkeypatch.undo()
    (run.folder / "data" / "report.json").write_text("{")
    with pytest.raises(UserError, match="report.json"):
        writer.write()


def test_folders_without_a_run_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        page.write(tmp_path / "none")
    with pytest.raises(UserError, match="run.json"):
        page.write(tmp_path)


def test_a_million_items_cost_no_more_than_a_few_seconds_and_bytes(states, tmp_path):
    """The catalog of a million is read where it is shown, a few hundred times; each item has
    keywords, each test user neighbors."""
    run = PageRun(tmp_path / "run", page_run.config())
    run.run(only=["data"])
    count, users, read = 1_000_000, 20_000, []
    rng = np.random.default_rng(0)
    noise = page_run.io.BytesIO()
    page_run.Image.fromarray(rng.integers(0, 256, (300, 300, 3), np.uint8)).save(noise, "PNG")

    class Source:
        def __getitem__(self, i):
            read.append(i)
            return Item(f"i{i}", {"title": f"item {i} " + "x" * 5000}, image=noise.getvalue())

    catalog = Catalog(Source(), np.arange(count).astype(str), np.ones(count, bool))
    histories = Histories.from_rows(
        np.arange(users).astype(str), np.repeat(np.arange(users), 6),
        rng.integers(0, count, users * 6), np.tile(np.arange(6), users),
    )  # fmt: skip
    split = leave_one_out(histories)
    run.__class__ = type("Big", (PageRun,), {"dataset": Dataset(catalog, histories, split)})
    run.evaluation = lambda folder: _ranks(folder, histories, split, count, rng)
    run.summaries = lambda folder: _keywords(folder, count)
    run.run(only=page_run.STEPS[1:])
    began = time.process_time()
    written = RunPage(run.folder, lambda: run.dataset, as_dict(Settings())).write()
    assert time.process_time() - began < 20
    assert written.stat().st_size < 5_000_000 and len(read) < 600
    found = Page(written.read_text())
    assert found.problems == []
    people = list(found.root.all("details", "person"))
    assert len(people) == 10
    for person in people:
        assert person.text.count("similarity ") == 3
        (listed,) = person.all("ol", "ranked")
        lines = list(listed.all("li"))
        assert len(lines) == 10
        for line in lines:
            (number,) = re.findall(r"item (\d+) x", line.text)
            assert f"word{number}" in [tag.text for tag in line.all("span", "tag")]


def _keywords(folder, count):
    with (folder / "summaries.jsonl").open("w") as file:
        file.writelines(
            f'{{"item": {n}, "id": "i{n}", "image": ["word{n}"], "text": ["kind{n % 997}"]}}\n'
            for n in range(count)
        )


def _ranks(folder, histories, split, items, rng):
    targets = histories.items[histories.offsets[split.test[:, 0]] + split.test[:, 1]]
    rows = []
    for name in ("popularity", "mmsrarec"):
        ranks = results.Ranks(
            split.test[:, 0], targets, rng.integers(1, items, len(targets)),
            np.full(len(targets), items - 5), np.zeros(len(targets)),
            rng.integers(0, items, (len(targets), 20)),
        )  # fmt: skip
        rows.append(page_run.report.row(name, "full", 0, ranks))
        results.ranking.write_ranks(folder / f"ranks-{name}-full.parquet", ranks)
    page_run.report.write_table(folder / "table.json", rows)


def test_two_runs_side_by_side(done, tmp_path):
    run, *_ = done
    other = page_run.config()
    other["sasrec"]["dim"] = 33
    second = PageRun(tmp_path / "other", other)
    second.run()
    out = tmp_path / "comparison"
    compare.run(
        [run.folder, second.folder], baseline="popularity", cutoffs=(5, 10), resamples=200, out=out
    )
    found = Page(compare_page.write(out, [run.folder, second.folder]).read_text())
    assert found.problems == []
    rows = json.loads((out / "comparison.json").read_text())["rows"]
    wanted = {(r["system"], r["metric"]): r for r in rows if r["slice"] == "all"}
    for system, ndcg, gain, *_ in found.table("30 users, protocol full")[1:]:
        row = wanted[system, "ndcg@10"]
        assert ndcg == f"{row['value']:.4f}"
        if system != "popularity":
            assert gain == f"{row['difference']:+.4f}{row['low']:+.4f} to {row['high']:+.4f}"
    assert found.table("1 settings that differ")[1:] == [["config.sasrec.dim", "64", "33"]]
    drawn = [given["aria-label"] for tag, given in found.seen if tag == "svg"]
    assert any(label.startswith("loss. shop: 5 to 0.005; other: 5 to 0.005") for label in drawn)
    (run.folder / "run.json").rename(tmp_path / "run.json")
    text = compare_page.write(out, [run.folder, second.folder]).read_text()
    (tmp_path / "run.json").rename(run.folder / "run.json")
    assert "run.json: it is missing" in text
