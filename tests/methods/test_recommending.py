"""Recommendations of a tiny run of MMSRARec, by the functions and by the command."""

import html
import itertools
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import urlencode

import browser
import html_check
import jax
import known_users
import launched
import local_page
import numpy as np
import pytest
import served_command
import shown_answers
import step_records
import xla_flags

import mmsrec_jax
from configs import quickstart
from mmsrec_jax.data import splits
from mmsrec_jax.data.records import Item
from mmsrec_jax.evaluation import protocols
from mmsrec_jax.evaluation.ranking import read_ranks
from mmsrec_jax.methods import answer_page, recommending
from mmsrec_jax.methods.mmsrarec import MMSRARec
from mmsrec_jax.methods.recommending import Recommending
from mmsrec_jax.methods.scorer import Scorer
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import from_config
from mmsrec_jax.runtime.workdir import run_steps
from mmsrec_jax.serving import forms
from mmsrec_jax.serving.item_search import ItemSearch
from mmsrec_jax.serving.local_server import Request
from mmsrec_jax.serving.site import RecommendSite

ROOT = Path(__file__).resolve().parents[2]
ITEMS = 60
SIZES = {
    "data.toyshop.num_users": 100, "data.toyshop.num_items": ITEMS, "data.toyshop.num_groups": 3,
    "model.tiny.hidden": 32, "model.tiny.layers": 2, "model.tiny.intermediate": 64,
    "model.tiny.vision_hidden": 24, "model.tiny.vision_intermediate": 48,
    "warmup.steps": 60, "warmup.warmup_steps": 5, "warmup.batch_size": 8, "summarizer.steps": 1,
    "summarizer.batch_size": 4, "summarizer.num_generations": 2, "summarizer.micro_batch": 8,
    "summarizer.distractors": 2, "summarizer.max_new_tokens": 16, "summarizer.warmup_steps": 0,
    "sasrec.steps": 20, "sasrec.evaluate_every": 10, "sasrec.batch_size": 8, "sasrec.dim": 16,
    "sft.steps": 2, "sft.warmup_steps": 1, "sft.batch_size": 4, "sft.evaluate_every": 1,
    "sft.validation_rows": 8, "forms": ("joint", "cached"),
    "cached.steps": 2, "cached.evaluate_every": 2, "cached.warmup_steps": 1, "cached.num_users": 4,
    "cached.num_items": 8, "cached.validation_rows": 8, "cached.score_items": 32,
    "cached.score_users": 4, "use.plain_sft": False, "evaluation.users": 8,
    "evaluation.batch_size": 8, "evaluation.length": 2400, "evaluation.generate": 8,
}  # fmt: skip
HISTORY = ["i0007", "i0023", "i0031"]


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder, config = tmp_path_factory.mktemp("recommending") / "run", quickstart.get_config()
    config.update_from_flattened_dict(SIZES)
    folder.mkdir()
    run_steps(folder, MMSRARec(from_config(Settings, config), folder, one_device()).steps())
    return folder


@pytest.fixture(scope="module")
def cached_workdir(workdir, tmp_path_factory):
    """The same run, had `forms` named cached first."""
    folder = tmp_path_factory.mktemp("recommending") / "cached"
    (folder / "evaluation").mkdir(parents=True)
    for step in workdir.iterdir():
        if step.is_dir() and step.name != "evaluation":
            (folder / step.name).symlink_to(step)
    record = json.loads((workdir / "evaluation" / "step.json").read_text())
    assert record["config"]["forms"] == ["joint", "cached"]
    shutil.copy(workdir / "evaluation" / "step.json", folder / "evaluation")
    step_records.change(folder / "evaluation", forms=["cached", "joint"])
    return folder


@pytest.fixture(scope="module")
def asked(workdir):
    return Recommending(workdir, one_device())


@pytest.fixture(scope="module")
def scorer(workdir):
    return Scorer(workdir, one_device())


@pytest.fixture(scope="module")
def written(workdir):
    """Keywords by item, as step `summaries` left them: of the text first, frequent ones first."""
    found = shown_answers.keywords(workdir)
    assert sum(map(bool, found.values())) > ITEMS / 2, "so short a warm-up wrote no keywords"
    return found


def test_items_of_a_user_are_those_that_the_mllm_scores_best(asked, scorer, written):
    name = str(scorer.histories.users[3])
    answer = asked.recommend(user=name, top=ITEMS)
    past = scorer.catalog.ids[scorer.histories.of(3)].tolist()
    rest = [id for id in scorer.catalog.ids.tolist() if id not in past]
    known = known_users.before(scorer, 3, len(past))
    scores = dict(zip(rest, scorer.scores(past, rest, **known), strict=True))
    assert {item.id for item in answer.items} == set(rest)
    assert sorted(answer.items, key=lambda item: -item.score) == answer.items
    sequential = np.asarray(scorer.recommender.scores(scorer.histories.of(3)[None]))[0]
    for rank, item in enumerate(answer.items, 1):
        at = scorer.catalog.index[item.id]
        assert (item.rank, item.added) == (rank, False)
        assert item.score == pytest.approx(scores[item.id], abs=1e-5)
        assert item.sequential_score == pytest.approx(sequential[at], abs=1e-5)
        assert item.keywords == written[item.id] and item.title == scorer.catalog[at].text["title"]
        assert Path(item.picture).read_bytes() == scorer.catalog[at].image
    assert [item.id for item in answer.history] == past[-scorer.config.prompts.history :]
    assert answer.user == name and answer.scorer == "mmsrarec/rerank"
    assert [item.id for item in asked.recommend(user=name, top=2).items] == [
        item.id for item in answer.items[:2]
    ]


def test_only_the_sequential_models_best_compete(workdir, scorer):
    asked = Recommending(workdir, one_device())
    object.__setattr__(asked._run.config.evaluation, "rerank", 5)
    past = [scorer.catalog.index[id] for id in HISTORY]
    scores = np.array(scorer.recommender.scores(np.array([past])))[0]
    scores[past] = -np.inf
    best = set(scorer.catalog.ids[np.argsort(-scores)[:5]].tolist())
    assert {item.id for item in asked.recommend(history=HISTORY).items} == best


def test_similar_users_of_a_typed_history(asked, scorer, written):
    """By brute force over the training prefixes."""
    answer, split, histories = asked.recommend(history=HISTORY), scorer._split, scorer.histories
    past = np.array([[scorer.catalog.index[id] for id in HISTORY]])
    own = scorer.recommender.embed(past)[0].astype(np.float64)
    best = {}
    for user, position in split.train:
        other = scorer.recommender.embed(histories.of(user)[None, :position])[0].astype(np.float64)
        cosine = own @ other / np.linalg.norm(own) / np.linalg.norm(other)
        if cosine > best.get(user, (-2, 0))[0]:
            best[user] = cosine, str(scorer.catalog.ids[histories.of(user)[position]])
    top = sorted(best.values(), reverse=True)
    assert 3 <= len(answer.neighbors) <= scorer.config.prompts.similar
    assert not {item.id for item in answer.neighbors} & set(HISTORY)
    assert answer.neighbors[0].id == next(id for _, id in top if id not in HISTORY)
    for found in answer.neighbors:
        assert found.keywords == written[found.id]
        assert any(found.similarity == pytest.approx(cosine, abs=1e-5) for cosine, _ in top)


def test_a_new_item_that_equals_an_old_one_has_its_keywords_and_its_score(workdir, scorer):
    asked = Recommending(workdir, one_device())
    old = scorer.catalog[12]
    same = Item("twin", dict(old.text), old.image, old.category)
    bare = Item("bare", {"title": "oak lamp"})
    asked.add([same, bare])
    answer = asked.recommend(history=HISTORY, top=2 * ITEMS)
    found = {item.id: item for item in answer.items}
    assert len(found) == ITEMS - len(HISTORY) + 2
    twin = found["twin"]
    assert twin.added and twin.sequential_score is None and not found[old.id].added
    assert twin.keywords == found[old.id].keywords
    assert twin.score == pytest.approx(found[old.id].score, abs=1e-5)
    assert Path(twin.picture).read_bytes() == old.image
    assert found["bare"].picture is None and "no picture" in answer.text()
    assert asked.recommend(history=HISTORY, top=1).items == answer.items[:1]
    # It may also be in a history, where prompts say its keywords.
    with_twin = asked.recommend(history=[*HISTORY, "twin"], top=2 * ITEMS)
    assert with_twin.history[-1].id == "twin"
    assert "twin" not in {item.id for item in with_twin.items}
    assert with_twin.neighbors == answer.neighbors  # the sequential model knows the others alone
    scores = {item.id: item.score for item in with_twin.items}
    assert any(abs(scores[id] - found[id].score) > 1e-4 for id in scores)
    with pytest.raises(UserError, match="all its items are new"):
        asked.recommend(history=["twin"])
    with pytest.raises(UserError, match=f"item '{old.id}' is in the catalog"):
        asked.add([old])


def test_a_run_that_ranks_by_cached_items_offers_the_whole_catalog(
    workdir, cached_workdir, scorer, written
):
    other = Scorer(cached_workdir, one_device())
    run = other._run
    assert (scorer.form, other.form) == ("joint", "cached")
    rows = run.test_targets()[:3]
    cached = run.cached_items()
    prompts = cached.prompts(rows)
    wanted = cached.catalog("again", run.base.trained("again", "cached"), prompts)
    wanted = np.asarray(wanted.row_scores(np.arange(3)))
    ids = scorer.catalog.ids.tolist()
    for row, (user, position) in enumerate(rows):
        past = [ids[item] for item in scorer.histories.of(user)[:position]]
        found = other.scores(past, ids, **known_users.before(other, user, position))
        np.testing.assert_allclose(found, wanted[row], atol=1e-5)
    assert np.ptp(wanted, axis=1).min() > 1e-3
    asked = Recommending(cached_workdir, one_device())
    before = asked.recommend(history=HISTORY, top=2 * ITEMS)
    rest = [id for id in ids if id not in HISTORY]
    scores = dict(zip(rest, other.scores(HISTORY, rest), strict=True))
    assert {item.id for item in before.items} == set(rest)
    assert sorted(before.items, key=lambda item: -item.score) == before.items
    assert all(item.score == pytest.approx(scores[item.id], abs=1e-5) for item in before.items)
    assert before.scorer == "mmsrarec/cached"
    named = Recommending(workdir, one_device(), "cached").recommend(history=HISTORY, top=5)
    assert [item.id for item in named.items] == [item.id for item in before.items[:5]]
    assert named.scorer == "mmsrarec/cached"
    top = mmsrec_jax.recommend(cached_workdir, HISTORY, top=5)
    assert [item.item_id for item in top] == [item.id for item in before.items[:5]]
    assert top[0].score == pytest.approx(before.items[0].score, abs=1e-5)
    old = scorer.catalog[12]
    asked.add([Item("twin", dict(old.text), old.image, old.category)])
    answer = asked.recommend(history=HISTORY, top=2 * ITEMS)
    found = {item.id: item for item in answer.items}
    assert len(found) == len(rest) + 1 and found["twin"].sequential_score is None
    assert found["twin"].score == pytest.approx(found[old.id].score, abs=1e-5)
    for item in before.items:
        assert found[item.id].score == pytest.approx(item.score, abs=1e-5)
        assert item.keywords == written[item.id] and item.sequential_score is not None


def test_the_page_of_an_answer_shows_it_and_hostile_text_stays_text(workdir):
    asked = Recommending(workdir, one_device())
    hostile = "<script>alert(1)</script>"
    asked.add([Item("n&1", {"title": hostile}, asked.catalog[12].image)])
    answer = asked.recommend(history=HISTORY, top=ITEMS)
    found = html_check.Page(answer_page.page(answer, asked.catalog, "the command"))
    assert not found.problems
    places = [found.words.index(f"{item.id}, score {item.score:.3f}") for item in answer.items]
    assert places == sorted(places)
    assert hostile in found.words and "n&1" in found.words and "the command" in found.words
    shown = [*answer.items, *answer.history, *answer.neighbors]
    assert len(found.pictures) == len(shown)  # every item of the shop has one
    titles = [asked.catalog[asked.catalog.index[item.id]].title for item in shown]
    assert [picture["alt"] for picture in found.pictures] == titles
    before = Counter(word for item in answer.history for word in item.keywords)
    word = next(word for item in answer.items for word in item.keywords if before[word])
    assert f"{word} × {before[word]}" in found.words


# --- the local page -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(workdir):
    asked = Recommending(workdir, one_device())
    asked.prepare()
    site = RecommendSite(asked, workdir)
    site._search.wait()
    with local_page.serving(site) as found:
        yield found


def test_the_local_page_answers_what_the_run_does_and_compiles_nothing(server, asked):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "/compile/" in event else None
    )
    eleven = [f"i{number:04d}" for number in range(3, 14)]
    questions = {
        "user=u00003": {"user": "u00003"},
        "user=u00004&top=3": {"user": "u00004", "top": 3},
    }
    for ids in (HISTORY[:1], HISTORY, eleven):
        questions["&".join(f"item={id}" for id in ids)] = {"history": ids}
    shown = {}
    for query in questions:
        status, shown[query] = local_page.page(server, f"/?{query}&ask=1")
        assert status == 200 and "Answered in " in shown[query].words
    assert not compiled
    jax.jit(lambda x: x + 41)(1.0)
    assert compiled, "nothing is counted"
    for query, question in questions.items():
        answer, found = asked.recommend(**question), shown[query]
        places = [found.words.index(f"{item.id}, score {item.score:.3f}") for item in answer.items]
        assert places == sorted(places) and found.words.count(", score ") == len(answer.items)
        for item in answer.neighbors:
            assert f"similarity {item.similarity:.2f}" in found.words
        titles = [asked.catalog[asked.catalog.index[item.id]].title for item in answer.items]
        assert [picture["alt"] for picture in found.pictures][: len(titles)] == titles
        assert all(picture["src"].startswith("data:image/") for picture in found.pictures)


def test_items_are_found_chosen_and_taken_back_by_the_address_alone(server, asked, written):
    def values(found, name):
        return [given["value"] for _, given in found.seen if given.get("name") == name]

    word = written["i0007"][0]
    _, found = local_page.page(server, f"/?q={word.upper()}&item=i0023")
    wanted = [
        item.id
        for item in itertools.islice(asked.catalog, ITEMS)
        if word in f"{item.id} {item.title} {', '.join(written[item.id])}".lower()
    ]
    assert "i0007" in wanted and values(found, "add") == wanted[:24]
    _, found = local_page.page(server, "/?item=i0023&item=i0031&add=i0007&drop=0&q=i0007")
    assert values(found, "item") == 3 * ["i0031", "i0007"]  # in three forms
    assert values(found, "drop") == ["0", "1"] and "Answered" not in found.words
    _, found = local_page.page(server, "/?q=no+such+words")
    assert "0 of 0 items" in found.words
    for times, count in (("", 10), ("&times=1,2", 0)):  # of one more item there is no time
        _, found = local_page.page(server, f"/?item=i0023&item=i0031{times}&ask=1")
        assert "Answered in " in found.words and found.words.count("Add to the history") == count


def test_a_history_is_typed_as_ids_and_what_is_wrong_with_it_stays_text(server):
    def typed(text, status):
        found_status, found = local_page.page(server, "/?ask=1&" + urlencode({"ids": text}))
        (field,) = (given for _, given in found.seen if given.get("name") == "ids")
        assert found_status == status
        return found, field.get("value")

    _, chosen = local_page.page(server, "/?ask=1&item=i0007&item=i0023")
    found, text = typed(" i0007 ,,i0023, ", 200)
    shown = [re.findall(r"i\d{4}, score -?[\d.]+", page.words) for page in (found, chosen)]
    assert shown[0] == shown[1] and len(shown[0]) == 10 and text == "i0007 ,,i0023,"
    (field,) = (given for _, given in chosen.seen if given.get("name") == "ids")
    assert field["value"] == "i0007, i0023"
    found, text = typed("i0007, i007", 400)
    assert "knows no item 'i007'; did you mean 'i0007'" in found.words and text == "i0007, i007"
    hostile = '"><script>alert(1)</script>, i0007'
    found, text = typed(hostile, 400)
    assert hostile.partition(",")[0] in found.words and text == hostile
    assert "the history is empty" in typed(" , ", 400)[0].words
    assert "more than 500 items" in typed("i0007," * 501, 400)[0].words
    assert local_page.page(server, "/?ids=a&ids=b")[0] == 400


def test_a_search_that_fails_says_why(server, asked, workdir):
    def keywords(number):
        if number == 9:
            raise OSError("the disk is gone")
        return asked.keywords(number)

    search = ItemSearch(asked.catalog, keywords)
    search.wait()
    assert search.find(asked.catalog, "i0008", 5)[0] == [8] and search.num_left == ITEMS - 9
    site = RecommendSite(asked, workdir)
    site._search = search
    text = site.respond(Request("/", forms.query("q=i0008"))).page
    assert f"; {ITEMS - 9} items cannot be searched: the disk is gone." in text
    assert "not read yet" not in text


def test_an_uploaded_item_competes_and_its_text_stays_text(server, asked, monkeypatch):
    old, hostile = asked.catalog[12], "<script>alert(1)</script>"
    fields = [("item", "i0007"), ("title", hostile), ("id", 'n"&1'), ("description", "for\r\nyou")]
    status, _, headers = local_page.post(server, "/add", fields, {"picture": old.image})
    assert status == 303 and headers["Location"].startswith("/?item=i0007&")
    status, found = local_page.page(server, headers["Location"])
    assert status == 200 and hostile in found.words and "new item" in found.words
    assert 'Added n"&1. Its keywords: ' in found.words and "Answered in " in found.words
    assert any(picture["alt"] == hostile for picture in found.pictures)
    assert 'n"&1' in [given["value"] for _, given in found.seen if given.get("name") == "add"]
    _, found = local_page.page(server, "/?item=i0007&item=n%22%261&ask=1")
    assert "Answered in " in found.words
    status, _, headers = local_page.post(server, "/add", [("title", "oak lamp")])
    assert status == 303 and local_page.page(server, headers["Location"])[0] == 200
    _, found = local_page.page(server, "/?q=new-2")
    assert "1 of 1 items" in found.words and "oak lamp" in found.words
    monkeypatch.setattr("mmsrec_jax.serving.site._DEEP", 1)
    _, found = local_page.page(server, "/?item=i0007&top=1&ask=1")
    assert "New items behind place 1: " in found.words
    for wrong, files, line in (
        ([("title", "a"), ("id", 'n"&1')], {}, "is in the catalog; a new item needs a new id"),
        ([("title", " ")], {}, "the item has no title; give it one"),
        ([("title", "a")], {"picture": b"no picture"}, "the picture cannot be read: 10 bytes"),
        ([("title", "a" * 6000)], {}, "more than 5,000 characters"),
        ([("title", "a"), ("id", "a" * 300)], {}, "the id has more than"),
        ([("title", "a"), ("item", "none")], {}, "knows no item"),
    ):
        status, text, _ = local_page.post(server, "/add", wrong, files)
        assert status == 400 and line in html.unescape(text)


@browser.needed
def test_the_local_page_and_that_of_an_answer_in_a_browser(server, workdir, tmp_path):
    asked = Recommending(workdir, one_device())
    answer = asked.recommend(history=HISTORY, top=20)
    local, alone = tmp_path / "local.html", tmp_path / "answer.html"
    local.write_text(local_page.ask(server, "/?item=i0007&item=i0023&ask=1&q=bowl")[1])
    alone.write_text(answer_page.page(answer, asked.catalog, "the command"))
    found = browser.look([local, alone], tmp_path)
    for path in (local, alone):
        count = path.read_text().count("<img ")
        assert count > 15 and all(frame["images"] == count for frame in found[path.name])


@pytest.mark.parametrize(
    ("path", "status", "line"),
    [
        ("/?item=i007&ask=1", 400, "knows no item 'i007'; did you mean 'i0007', "),
        ("/?user=u0003&ask=1", 400, "did you mean 'u00003'"),
        ("/?ask=1", 400, "the history is empty: find items"),
        ("/?user=u00003&item=i0007&ask=1", 400, "a user and a history are given"),
        ("/?top=0", 400, "a number from 1 to 100"),
        ("/?top=1&top=2", 400, "'top' is given 2 times"),
        ("/?item=i0007&drop=1", 400, "the history has no such place"),
        ("/?item=i0007&drop=" + "1" * 5000, 400, "the history has no such place"),
        ("/?top=" + "1" * 5000, 400, "a number from 1 to 100"),
        ("/?added=" + "1" * 5000, 200, "Nothing is chosen yet"),
        ("/?item=i0007&times=now&ask=1", 400, "times: 'now' is no number"),
        ("/?item=i0007&times=1,2&ask=1", 400, "times: 2 for 1 items"),
        ("/?item=i0007&now=nan&ask=1", 400, "now"),
        ("/?" + "&item=i0007" * 501, 400, "more than 500 items"),
        ("/pictures/i0007.png", 404, "there is no such page"),
        ("/../run.json", 404, "there is no such page"),
        ("/add", 404, "there is no such page"),
    ],
)
def test_mistakes_on_the_local_page_are_one_line(server, workdir, path, status, line):
    found, text, _ = local_page.ask(server, path)
    assert found == status and line in html.unescape(text)
    assert "Traceback" not in text and str(workdir.parent) not in text


class Backwards:
    """Another scorer of the whole catalog."""

    name = "backwards"

    def scores(self, query):
        items = np.setdiff1d(np.arange(ITEMS), query.history.items).astype(np.int32)
        return recommending.Scored(items, items.astype(np.float32), np.full(len(items), np.nan))


def test_another_scorer_takes_its_place_at_one_point(workdir):
    asked = Recommending(workdir, one_device())
    asked._scorer = Backwards()
    answer = asked.recommend(history=HISTORY, top=2)
    assert [item.id for item in answer.items] == ["i0059", "i0058"]
    assert answer.scorer == "backwards" and answer.items[0].score == 59


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"history": ["i007"]}, "knows no item 'i007'; did you mean 'i0007', "),
        ({"history": ["chair"]}, "knows no item 'chair'; ids are those of the raw files"),
        ({"history": []}, "history is empty"),
        ({"history": [7]}, "knows no item 7; ids are those"),
        ({"user": None, "history": ["i0007", None]}, "knows no item None"),
        ({"user": 3}, "knows no user 3"),
        ({"history": ["i0007"], "times": ["soon"]}, "times: could not .*; give seconds"),
        ({"history": ["i0007"], "now": "soon"}, "now='soon': must be"),
        ({"user": "u0003"}, "knows no user 'u0003'; did you mean 'u00003'"),
        ({"user": "nobody"}, "knows no user 'nobody'; ids are those"),
        ({}, "one of them"),
        ({"user": "u00003", "history": ["i0007"]}, "one of them"),
        ({"user": "u00003", "times": [1.0]}, "--times belong to --history"),
        ({"history": ["i0007"], "times": [1.0, 2.0]}, "times: 2 for 1 items"),
    ],
)
def test_mistakes_name_the_remedy(asked, arguments, message):
    with pytest.raises(UserError, match=message) as raised:
        asked.recommend(**arguments)
    assert "\n" not in str(raised.value)


def test_folders_that_are_no_finished_run(workdir, shop_folder, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        Recommending(tmp_path / "nothing")
    with pytest.raises(UserError, match="no run has begun in this folder"):
        Recommending(tmp_path)
    with pytest.raises(UserError, match="a sequential recommender alone; mmsrec_jax.recommend"):
        Recommending(shop_folder / "runs" / "shop")
    half = tmp_path / "half"
    half.mkdir()
    for step in ("data", "model", "warmup", "summarizer", "summaries", "sasrec", "retrieval"):
        (half / step).symlink_to(workdir / step)
    with pytest.raises(UserError, match="step evaluation has not finished; run launch/train.py"):
        Recommending(half)
    with pytest.raises(UserError, match="trained no form 'both', but joint, cached"):
        Recommending(workdir, form="both")


def test_the_joint_form_has_the_weights_that_were_best_on_validation(workdir, scorer):
    run = scorer._run
    lines = (workdir / "sft" / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line).get("validation/ndcg@10") for line in lines]
    logged = [value for value in logged if value is not None]
    assert len(logged) == 2
    split, histories = run.dataset.split, scorer.histories
    frozen = protocols.sampled(
        histories, splits.subset(split.validation, 8, 0), n=20, seed=0, num_items=ITEMS
    )
    model = run.base.trained("again", "sft")
    scores = run.score_lists("again", model, run.context, frozen.rows, frozen.items)
    own = scores[np.arange(8), frozen.positive]
    place = (scores >= own[:, None]).sum(1)  # ties count against the target
    assert np.mean(np.where(place <= 10, 1 / np.log2(place + 1), 0)) == pytest.approx(max(logged))


def test_the_table_has_a_row_of_generated_keywords(workdir, scorer):
    ranks, said = read_ranks(workdir / "evaluation" / "ranks-mmsrarec.generate-full.parquet")
    assert said["system"] == "mmsrarec/generate" and len(ranks) == 8
    assert ((ranks.ranks >= 1) & (ranks.ranks <= ranks.candidates)).all()
    table = json.loads((workdir / "table.json").read_text())
    assert ("mmsrarec/generate", "full") in {(row["system"], row["protocol"]) for row in table}


def test_the_benchmark_of_forms_has_a_row_for_each(workdir, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["forms.py", f"--workdir={workdir}", "--users=3"])
    runpy.run_path(str(ROOT / "benchmarks" / "forms.py"), run_name="__main__")
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["system"] for row in rows] == ["sasrec", "mmsrarec", "mmsrarec/cached"]
    table = {
        (row["system"], row["protocol"]): row
        for row in json.loads((workdir / "table.json").read_text())
    }
    for row in rows:
        assert row["hr@5 sampled"] == table[row["system"], "sampled@20"]["hr@5"]
        assert 0 < row["ms_p50"] <= row["ms_p95"]
    joint, cached = (row["flops"] for row in rows[1:])
    assert joint > 10 * cached > 0  # it reads every candidate after the prompt


# --- the command ----------------------------------------------------------------------------------


def test_the_command_serves_until_ctrl_c_and_says_what_it_compiles(workdir, tmp_path):
    text, said, status = served_command.answer(workdir, tmp_path, "?ids=i0007,i0023&ask=1")
    found = html_check.Page(text, served=True)
    assert not found.problems and "Answered in " in found.words
    assert status == 0 and said.endswith(" stopped\n") and "Traceback" not in said
    before, after = said.split("(Ctrl-C ends it)")
    assert re.search(r" compiling \w+\n", before) and " compiling " not in after


def test_the_command_prints_one_json_object_with_a_new_item(workdir, scorer, tmp_path):
    old = scorer.catalog[12]
    (tmp_path / "twin.png").write_bytes(old.image)
    new = {"id": "twin", **old.text, "image": "twin.png"}
    (tmp_path / "new.jsonl").write_text(json.dumps(new) + "\n")
    done = subprocess.run(
        [sys.executable, "launch/recommend.py", f"--workdir={workdir}", f"--top={ITEMS}",
         f"--html={tmp_path / 'answer.html'}",
         f"--history={','.join(HISTORY)}", f"--add={tmp_path / 'new.jsonl'}", "--json"],
        cwd=ROOT, env=os.environ | {"XLA_FLAGS": xla_flags.of_devices(1)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)
    assert not html_check.Page((tmp_path / "answer.html").read_text()).problems
    assert set(answer) == {"user", "scorer", "history", "neighbors", "items", "told"}
    assert answer["told"] is None
    assert answer["user"] is None and len(answer["items"]) == ITEMS - len(HISTORY) + 1
    for part, fields in (
        ("history", shown_answers.OF_AN_ITEM), ("neighbors", shown_answers.OF_A_NEIGHBOR),
        ("items", shown_answers.OF_A_RANKED_ITEM),
    ):  # fmt: skip
        assert answer[part]
        for item in answer[part]:
            shown_answers.check_fields(item, fields)
    found = {item["id"]: item for item in answer["items"]}
    assert found["twin"]["added"] and found["twin"]["sequential_score"] is None
    assert found["twin"]["score"] == pytest.approx(found[old.id]["score"], abs=1e-4)
    assert [item["rank"] for item in answer["items"]] == list(range(1, len(found) + 1))


def test_the_command_for_people_and_its_mistakes(workdir, tmp_path):
    def run(name, *arguments):
        return launched.run("launch/recommend.py", *arguments, log=tmp_path / name, timeout=300)

    status, said = run("text", f"--workdir={workdir}", "--user=u00003", "--top=3")
    assert status == 0
    assert "similar users took next:" in said and "recommended by mmsrarec/rerank:" in said
    assert str(workdir / "pictures") in said and "  3. i" in said and "  4. i" not in said
    for name, arguments, message in (
        ("user", [f"--workdir={workdir}", "--user=u0003"], "did you mean 'u00003'"),
        ("none", ["--user=u00003"], "--workdir must be given"),
        ("where", [f"--workdir={tmp_path}", "--user=u00003"], "no run has begun in this folder"),
        ("times", [f"--workdir={workdir}", "--history=i0007", "--times=now"], "'now' is no number"),
        ("port", [f"--workdir={workdir}", "--port=1"], "--port: it belongs to --serve"),
        ("both", [f"--workdir={workdir}", "--serve", "--top=3"], "--top: with --serve, ask on the"),
        ("json", [f"--workdir={workdir}", "--serve", "--json"], "--json: the page of --serve has"),
        ("add", [f"--workdir={workdir}", "--user=u0", "--add=x.jsonl"], "x.jsonl: no such file"),
    ):
        status, said = run(name, *arguments)
        assert status == 2 and message in said and "Traceback" not in said
