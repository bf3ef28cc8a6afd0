"""MLLM-SRec on a tiny shop, in real processes: killed in every step of its own, and once unbroken;
what ablations leave out."""

import dataclasses
import json

import jax
import killed_runs
import known_users
import launched
import local_page
import pyarrow.parquet as pq
import pytest
from html_check import Page
from logged_metrics import explained, logged
from test_mmsrarec import TINY as SHARED
from test_mmsrarec import finish, losses

from configs import quickstart
from mmsrec_jax.data.records import Item
from mmsrec_jax.data.user_attributes import UserAttributes
from mmsrec_jax.evaluation.ranking import read_ranks
from mmsrec_jax.inference.text_store import TextStore
from mmsrec_jax.methods import recommending
from mmsrec_jax.methods.experiment import check
from mmsrec_jax.methods.mllm_srec import MLLMSRec
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.methods.user_texts import KEY
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import from_config
from mmsrec_jax.runtime.sharding import make_mesh
from mmsrec_jax.runtime.workdir import Step
from mmsrec_jax.serving.site import RecommendSite

OWN = ("item_texts", "writer", "preferences", "profiles", "chain_sft", "chain_cached", "evaluation")
ALL = [
    "data", "model", "warmup", "visual_answers", "item_texts", "claims", "sasrec", "writer",
    "preferences", "profiles", "plain_sft", "chain_sft", "chain_cached", "evaluation",
]  # fmt: skip
TEXTS = ("item_texts/summaries", "preferences/preferences", "profiles/profiles")
TINY = {
    name: value for name, value in SHARED.items()
    if not name.startswith(("summar", "prompts", "evaluation.length", "evaluation.rerank"))
} | {
    "use.plain_sft": False, "evaluation.fuse": False, "evaluation.rerank": 0,
    "understanding.batch_size": 16, "preferences.batch_size": 32, "preferences.max_new_tokens": 6,
    "writer.steps": 8, "writer.warmup_steps": 2, "writer.checkpoint_every": 2,
    "writer.batch_size": 4, "chain.scoring": "generated", "evaluation.users": 24,
    # So few items train a tokenizer of few words: prompts are longer than on the quickstart.
    "preferences.prompt_length": 200, "cached.prompt_length": 240, "sft.length": 1280,
    "sft.targets": 320, "evaluation.length": 2400,
}  # fmt: skip
BOTH = {"forms": ("joint", "cached"), "use.plain_sft": True}


def start(workdir, tmp_path, *arguments):
    flags = [f"--config.{name}={value}" for name, value in TINY.items()]
    return launched.start(
        "launch/train.py", "--config=configs/quickstart.py:mllm_srec", f"--workdir={workdir}",
        *flags, *arguments, log=tmp_path / f"{workdir.name}.log", compiled=tmp_path / "compiled",
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mllm_srec")
    return killed_runs.unbroken_and_killed(folder, OWN, start, finish)


@pytest.mark.processes
def test_killed_in_every_step_ends_as_if_unbroken(runs):
    unbroken, broken, killed = runs
    assert killed == list(OWN)
    tables = [json.loads((run / "table.json").read_text()) for run in (unbroken, broken)]
    assert tables[0] == tables[1]
    for name in TEXTS:
        one, two = (run / f"{name}.jsonl" for run in (unbroken, broken))
        assert one.read_text() == two.read_text() and one.read_text()
    for step in ("writer", "chain_sft", "chain_cached"):
        assert losses(broken / step) == losses(unbroken / step)
    systems = {(row["system"], row["protocol"]) for row in tables[0]}
    assert {
        ("mllm_srec", "sampled@20"), ("mllm_srec/cached", "sampled@20"),
        ("mllm_srec/cached", "full"), ("bayes_optimal", "full"), ("keyword_logit", "full"),
        ("sasrec", "full"),
    } <= systems  # fmt: skip
    for ranks in (unbroken / "evaluation").glob("ranks-*.parquet"):
        assert pq.read_table(ranks).equals(pq.read_table(broken / "evaluation" / ranks.name))
    for form in ("joint", "cached"):
        chains = (unbroken / "evaluation" / f"chains-{form}.jsonl").read_text().splitlines()
        assert len(chains) == 24
    page = Page((broken / "report.html").read_text())
    assert page.problems == [] and page.table("Claims of texts") and "Profile" in page.words
    found = logged(unbroken)
    assert {"loss/tokens", "loss/next_in_history"} <= found <= explained()


@pytest.mark.processes
def test_a_history_is_scored_as_in_the_evaluation_and_a_new_interaction_costs_a_window(
    runs, monkeypatch
):
    """Beside it: what a finished run says of a typed history, and by which texts."""
    unbroken, mesh = runs[0], make_mesh(devices=jax.devices()[:1])
    name = "ranks-mllm_srec.cached-full.parquet"
    ranks, _ = read_ranks(unbroken / "evaluation" / name)
    scorer = recommending.open_scorer(unbroken, mesh, "cached")
    ids, histories = scorer.catalog.ids.tolist(), scorer.histories
    for row in range(3):
        user = int(ranks.users[row])
        position = int(histories.lengths[user]) - 1  # leave-one-out
        assert histories.of(user)[position] == ranks.targets[row]
        past = [ids[item] for item in histories.of(user)[:position]]
        target = ids[histories.of(user)[position]]
        others = [id for id in ids if id not in past and id != target]
        known = known_users.before(scorer, user, position)
        scores = scorer.scores(past, [target, *others], **known)
        assert ranks.ranks[row] == 1 + (scores[1:] > scores[0]).sum()
        assert scorer.told.windows_written == 0 and scorer.told.preferences
    for form in ("joint", "cached"):
        asked = recommending.Recommending(unbroken, mesh, form)
        user, step = str(histories.users[1]), asked._run.config.preferences.step
        answer = asked.recommend(user=user, top=5)
        assert answer.scorer.startswith("mllm_srec/") and len(answer.items) == 5
        assert answer.told.windows_written <= 1
        assert asked.recommend(user=user, top=5).told == dataclasses.replace(
            answer.told, windows_written=0
        )
    for store in asked._run._stores._opened.values():  # each file is read once a process
        monkeypatch.setattr(store, "_read", lambda: pytest.fail("a file is read again"))
    past = [ids[item] for item in histories.of(1)]
    past = past[: len(past) // step * step]
    times = [60.0 * at for at in range(len(past))]
    typed = asked.recommend(history=past, times=times)
    assert typed.told.preferences and typed.told.windows_written > 0
    longer = [*past, *(id for id in ids if id not in past)][: len(past) + step]
    times += [times[-1] + 60.0 * (at + 1) for at in range(step)]
    new = asked.recommend(history=longer, times=times)
    assert new.told.windows_written == 1 and new.told.preferences[-1] in new.text()
    with pytest.raises(UserError, match="recommends the items of its data alone"):
        asked.add([Item("new", {"title": "new"})])
    asked.prepare()
    with local_page.serving(RecommendSite(asked, unbroken)) as server:
        status, found = local_page.page(server, f"/?user={user}&ask=1")
        assert status == 200 and "Preferences, oldest window first" in found.words
        assert "Add an item" not in found.words
        assert f"{answer.items[0].id}, score {answer.items[0].score:.3f}" in found.words
        status, text, _ = local_page.post(server, "/add", [("title", "new")])
        assert status == 400 and "takes no new items" in text
    with pytest.raises(UserError, match="the run reads nothing that users state"):
        asked.recommend(history=longer, times=times, about={"age": "35"})
    assert new.told.stated == {}
    # As if the run had read ages: the profile is written anew, from what is told.
    stated = UserAttributes.of({"age": ["24", "35"] + [None] * (len(histories) - 2)})
    asked._run._run.user_texts.attributes = stated
    assert asked.recommend(user=user, top=5).told.stated == {"age": "35"}
    assert asked.recommend(history=longer, times=times).told.stated == {}
    path = unbroken / "asked" / "profiles" / "profiles.jsonl"
    before = list(TextStore(path, KEY))
    told = asked.recommend(history=longer, times=times, about={"age": "77"})
    assert told.told.stated == {"age": "77"} and "the user states: age 77" in told.text()
    assert told.told.windows_written == 0  # of windows nothing changed
    after = list(TextStore(path, KEY))
    (rewritten,) = (row for row in after if row not in before)
    assert rewritten["user"] == "" and len(after) == len(before)
    with pytest.raises(UserError, match="the run reads no 'gender' of users; it reads age"):
        asked.recommend(history=longer, times=times, about={"gender": "F"})
    with pytest.raises(UserError, match="--about belongs to --history"):
        asked.recommend(user=user, about={"age": "35"})


@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        ({}, set()),
        ({"forms": ("cached",)}, {"chain_sft"}),
        ({"understanding.mode": "both"}, {"visual_answers"}),
        ({"use.profile": False}, {"profiles"}),
        ({"use.windows": False}, set()),
        ({"use.clock": False}, set()),
        ({"use.chain": False}, set()),
        ({"use.plain_sft": False}, {"plain_sft"}),
        ({"model.path": "somewhere"}, {"model", "warmup", "writer"}),
        ({"model.path": "somewhere", "writer.pretrained": True}, {"model", "warmup"}),
    ],
)
def test_an_ablation_leaves_out_its_steps_and_runs_what_reads_it_again(tmp_path, changes, left_out):
    def steps(**changes):
        config = quickstart.get_config("mllm_srec")
        with config.unlocked():
            config.update_from_flattened_dict(changes)
        mesh = make_mesh(devices=jax.devices()[:1])
        return MLLMSRec(from_config(Settings, config), tmp_path, mesh).steps()

    whole, found = steps(**BOTH), steps(**(BOTH | changes))
    assert [step.name for step in whole] == ALL
    assert [step.name for step in found] == [name for name in ALL if name not in left_out]
    for place, step in enumerate(found):
        assert set(step.inputs) <= {earlier.name for earlier in found[:place]}
    reads = {step.name: set(step.inputs) for step in found}
    assert reads["chain_cached"] >= {"item_texts", "preferences", "profiles"} - left_out
    records = {step.name: json.dumps(step.config) for step in whole}
    again = {step.name for step in found if json.dumps(step.config) != records[step.name]}
    expected = {
        "use.windows": {"writer", "preferences", "profiles", "chain_sft", "chain_cached"},
        "use.clock": {
            "writer", "preferences", "profiles", "plain_sft", "chain_sft", "chain_cached"
        },
        "use.chain": {"chain_sft", "chain_cached"},
    }  # fmt: skip
    for name in changes:
        assert again == expected.get(name, again)


def rerun(before: list[Step], after: list[Step]) -> set[str]:
    """Names of the steps of `after` that a run of `before` would run (again)."""

    def known(steps: list[Step]) -> dict[str, list]:
        found: dict[str, list] = {}
        for step in steps:
            found[step.name] = [json.dumps(step.config), *(found[name] for name in step.inputs)]
        return found

    old, new = known(before), known(after)
    return {name for name in new if new[name] != old.get(name)}


@pytest.mark.parametrize("pretrained", [False, True])
def test_what_users_state_runs_profiles_and_what_reads_them_again(tmp_path, pretrained):
    root = tmp_path / "shop"
    root.mkdir()
    (root / "shop.inter").write_text("user_id:token\titem_id:token\nu\ti\n")
    (root / "shop.user").write_text("user_id:token\tage:token\tgender:token\nu\t35\tF\n")

    def steps(*fields: str, **changes) -> list[Step]:
        config = quickstart.get_config("mllm_srec")
        config.data.update(source="atomic", root=str(root), user_fields=fields)
        with config.unlocked():
            config.update_from_flattened_dict({**BOTH, **changes})
        if pretrained:
            config.model.path = "somewhere"
        mesh = make_mesh(devices=jax.devices()[:1])
        return MLLMSRec(from_config(Settings, config), tmp_path, mesh).steps()

    silent, told, more = steps(), steps("age"), steps("age", "gender")
    assert [step.name for step in told if step.name != "users"] == [step.name for step in silent]
    again = {"users", "profiles", "chain_sft", "chain_cached", "evaluation"}
    if not pretrained:
        again |= {"writer", "preferences"}  # what the writer has learned writes these too
    assert rerun(silent, told) == rerun(told, more) == again
    assert rerun(told, silent) == again - {"users"}
    without = {"use.profile": False}
    assert rerun(steps(**without), steps("age", **without)) == set()
    (root / "shop.user").write_text("user_id:token\tage:token\tgender:token\nu\t36\tF\n")
    assert rerun(told, steps("age")) == again
    (users,) = (step for step in told if step.name == "users")
    assert users.config["user_fields"] == ["age"] and users.alone


def test_the_method_alone_that_reads_what_users_state_takes_it(tmp_path):
    config = quickstart.get_config()
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "shop.user").write_text("user_id:token\tage:token\nu\t35\n")
    config.data.update(source="atomic", root=str(tmp_path / "shop"), user_fields=("age",))
    with pytest.raises(UserError, match="the profile of method=mllm_srec alone reads what users"):
        check(from_config(Settings, config))
    config.method = "mllm_srec"
    check(from_config(Settings, config))
    config.use.profile = False
    with pytest.raises(UserError, match=r"user_fields=\('age',\): config.use.profile=False writes"):
        check(from_config(Settings, config))
    config.data.user_fields = ()
    check(from_config(Settings, config))


def test_the_flag_about_is_fields_with_values():
    assert recommending.attributes(["age=25-34", " job = a=b "]) == {"age": "25-34", "job": "a=b"}
    assert recommending.attributes(None) == {}
    for parts, message in (
        (["age"], "--about: 'age' is not FIELD=VALUE"),
        (["age="], "--about: 'age=' is not FIELD=VALUE"),
        (["age=1", "age=2"], "--about: age stands twice"),
    ):
        with pytest.raises(UserError, match=message):
            recommending.attributes(parts)
