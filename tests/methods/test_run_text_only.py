"""A text-only model in place of an MLLM: the whole method, item features, and images refused."""

import json

import known_users
import numpy as np
import pytest
import tiny_text_model
from flax import nnx

import mmsrec_jax
from configs import base, quickstart
from mmsrec_jax import methods
from mmsrec_jax.evaluation.protocols import Candidates
from mmsrec_jax.evaluation.ranking import read_ranks
from mmsrec_jax.hf import tokenizer
from mmsrec_jax.methods.export import export
from mmsrec_jax.methods.mmsrarec import MMSRARec
from mmsrec_jax.methods.scorer import Scorer
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.prompts import TEMPLATES, corpus, tasks
from mmsrec_jax.runtime import sharding
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import from_config

ITEMS = 40


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """A model of a few thousand weights, as `config.model.path` names one."""
    texts = [*corpus(TEMPLATES["full"]), " linen bag, oak lamp, glass bowl"] * 8
    return tiny_text_model.write(tmp_path_factory.mktemp("text") / "model", texts, "qwen3")


def configured(model_path):
    config = quickstart.get_config()
    config.data.toyshop.update(num_users=80, num_items=ITEMS, num_groups=3)
    # as configs of multimodal models have it
    config.model.update(path=str(model_path), max_pixels=128 * 28 * 28)
    config.use.images = False
    config.prompts.templates = "full"
    config.summarizer.update(
        steps=2, batch_size=8, num_generations=2, micro_batch=16, max_new_tokens=8,
        prompt_length=128, checkpoint_every=2, distractors=2,
    )  # fmt: skip
    config.summaries.batch_size = 8
    config.sasrec.update(steps=4, evaluate_every=2, batch_size=8, dim=8, mlp_dim=8, layers=1)
    config.sft.update(steps=2, batch_size=8, length=384, checkpoint_every=2, warmup_steps=1)
    config.forms = ("joint", "cached")
    config.cached.update(
        steps=2, evaluate_every=2, num_users=8, num_items=16, prompt_length=256, item_length=64,
        words_length=32, warmup_steps=1, validation_rows=8, score_users=8, score_items=ITEMS,
    )  # fmt: skip
    config.evaluation.update(users=16, batch_size=8, length=1024)
    return config


@pytest.fixture(scope="module")
def run(model_path, tmp_path_factory):
    """The whole method on eight devices: adapters by GRPO, every weight by SFT."""
    workdir = tmp_path_factory.mktemp("run")
    methods.run(configured(model_path), workdir)
    return workdir


def test_the_whole_method(run):
    rows = json.loads((run / "table.json").read_text())
    score = {row["system"]: row["auc"] for row in rows if row["protocol"] == "sampled@20"}
    assert {"mmsrarec", "mmsrarec/cached", "plain_sft", "sasrec"} <= set(score)
    assert all(0 < value < 1 for value in score.values())
    metrics = [json.loads(line) for line in (run / "summarizer" / "metrics.jsonl").open()]
    names = {name for row in metrics for name in row}
    assert "reward/semantic" in names and "reward/format" in names
    written = [json.loads(line) for line in (run / "summaries" / "summaries.jsonl").open()]
    assert [row["item"] for row in written] == list(range(ITEMS))


def test_no_prompt_asks_for_an_image(run, model_path):
    mesh = sharding.make_mesh()
    experiment = MMSRARec(from_config(Settings, configured(model_path)), run, mesh)
    tokens = tokenizer.load(model_path)
    targets = experiment.test_targets()
    asked = experiment.summary_source()
    chosen = experiment.recommend_source(experiment.context(targets), targets)
    for row in range(4):
        text = tokens.decode(asked.example(row, 0).tokens)
        assert "Text:" in text and "text: keyword, keyword" in text and "image" not in text.lower()
        assert not asked.example(row, 0).images and not chosen.example(row, 0).images
    with_image = tasks.summarize(TEMPLATES["full"], "a mug", has_image=True)
    assert "image: keyword, keyword\ntext: keyword, keyword" in with_image


def test_the_trained_model_is_exported(run, model_path, tmp_path):
    export(run, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "config.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip
    assert not (tmp_path / "out" / "preprocessor_config.json").exists()
    experiment = MMSRARec(from_config(Settings, configured(model_path)), run, sharding.make_mesh())
    trained, start = experiment.base.trained("again", "sft"), mmsrec_jax.load(model_path)
    exported = mmsrec_jax.load(tmp_path / "out")
    for (path, mine), written, before in zip(
        nnx.to_flat_state(nnx.state(trained, nnx.Param)),
        dict(nnx.to_flat_state(nnx.state(exported))).values(),
        dict(nnx.to_flat_state(nnx.state(start))).values(),
        strict=True,
    ):
        np.testing.assert_array_equal(written[...], mine[...], err_msg=str(path))
        assert not np.array_equal(written[...], before[...]), path


@pytest.fixture(scope="module")
def without_sft(run, model_path, tmp_path_factory):
    """The paper's ablation: what it shares with the run is taken from there."""
    config = configured(model_path)
    config.forms = ("joint",)
    config.use.update(sft=False, plain_sft=False)
    config.evaluation.update(fuse=False, users=8)
    workdir = tmp_path_factory.mktemp("run") / "no-sft"
    methods.run(config, workdir, reuse=[run])
    return workdir


def test_without_sft_the_model_ranks_as_it_is(without_sft, model_path):
    """By the margin of yes and no after each candidate's own chat, one forward pass each."""
    model, scorer = mmsrec_jax.load(model_path, "float32"), Scorer(without_sft)
    experiment = MMSRARec(scorer.config, without_sft, sharding.make_mesh())
    evaluation = without_sft / "evaluation"
    frozen = Candidates.read(evaluation / "candidates-sampled@20.parquet")
    ranks, _ = read_ranks(evaluation / "ranks-mmsrarec-sampled@20.parquet")
    source = experiment.candidate_source(experiment.context(frozen.rows), frozen.rows, frozen.items)
    yes, no = experiment.prompt_config.chat.yes_no_ids
    for row in range(2):
        example = source.example(row, 0)
        rooms = [np.isin(example.suffix_ids, (0, c)) for c in range(1, 22)]
        chats = [example.tokens[room] for room in rooms]
        ids = np.zeros((21, max(map(len, chats))), np.int32)
        for c, chat in enumerate(chats):
            assert chat[-1] == (yes if c == frozen.positive[row] else no)
            ids[c, : len(chat)] = chat
        logits = mmsrec_jax.logits(model, ids, ids > 0, [[]] * 21)
        after = logits[np.arange(21), [len(chat) - 2 for chat in chats]]
        margins = after[:, yes] - after[:, no]
        own = margins[frozen.positive[row]]
        assert (margins > own + 1e-5).sum() < ranks.ranks[row] <= (margins >= own - 1e-5).sum()
        user, position = frozen.rows[row]
        found = scorer.scores(
            scorer.catalog.ids[scorer.histories.of(user)[:position]].tolist(),
            scorer.catalog.ids[frozen.items[row]].tolist(),
            **known_users.before(scorer, user, position),
        )
        np.testing.assert_allclose(found, margins, rtol=0, atol=1e-4)
        assert np.ptp(margins) > 1e-3


def test_what_was_not_trained_is_not_exported(without_sft, tmp_path):
    assert [path.name for path in (without_sft / "sft").iterdir()] == ["step.json"]
    with pytest.raises(UserError, match="trained nothing .config.use.sft=False"):
        export(without_sft, tmp_path / "out")


def test_features_of_items(model_path, tmp_path):
    """What the public face says of the same titles."""
    config = base.get_config("molar")
    config.data.source = "toyshop"
    config.data.toyshop.update(num_users=60, num_items=ITEMS, num_groups=3)
    config.model.update(path=str(model_path), dtype="float32")
    config.molar.contents = ("item",)  # without images it is the text
    config.use.images = False
    config.prompts.fields = ("title",)
    config.features.update(batch_size=8, workers=0)
    methods.run(config, tmp_path / "run", only=["data", "features"])
    made = np.load(tmp_path / "run" / "features" / "item.npy")
    catalog = mmsrec_jax.open_dataset(tmp_path / "run").catalog
    titles = [item.text["title"] for item in catalog]
    model = mmsrec_jax.load(model_path)
    np.testing.assert_allclose(made, mmsrec_jax.embed(model, model_path, titles), atol=1e-4)


@pytest.mark.parametrize("kind", ["mmsrarec", "molar"])
def test_images_are_refused_before_anything_runs(model_path, tmp_path, kind):
    config = configured(model_path)
    config.use.images = True
    if kind == "molar":
        config.update(method="sequential", sequential_model="molar")
        config.molar.contents = ("text",)
    with pytest.raises(UserError, match="config.use.images is True.*--config.use.images=False"):
        methods.run(config, tmp_path / "run")
    config.update(method="sequential", sequential_model="molar")
    config.use.images, config.molar.contents = False, ("text", "image")
    with pytest.raises(UserError, match="contents names 'image', but config.use.images is False"):
        methods.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
