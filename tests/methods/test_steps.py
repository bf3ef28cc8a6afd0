"""The steps of MMSRARec: what each ablation leaves out, and what records must hold for others."""

import dataclasses
from pathlib import Path

import jax
import pytest

from configs import base, quickstart
from mmsrec_jax.hf.mapping import config_from_hf
from mmsrec_jax.hf.processor import read_json
from mmsrec_jax.methods import base_model
from mmsrec_jax.methods.base_model import SECTIONS, BaseModel
from mmsrec_jax.methods.mllm_srec import MLLMSRec
from mmsrec_jax.methods.mmsrarec import MMSRARec
from mmsrec_jax.methods.scaling_point import ScalingPoint
from mmsrec_jax.methods.sequential import Sequential
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import from_config
from mmsrec_jax.runtime.sharding import make_mesh
from mmsrec_jax.sequential.registry import MODELS

GOLDEN = Path(__file__).parents[1] / "golden" / "llava_clip"
ALL = [
    "data", "model", "warmup", "summarizer", "summaries", "sasrec", "retrieval", "plain_sft",
    "text_sft", "sft", "cached", "evaluation",
]  # fmt: skip
BOTH = {"forms": ("joint", "cached"), "use.text_sft": True}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(devices=jax.devices()[:1])


def settings_of(config, **changes) -> Settings:
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return from_config(Settings, config)


@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        ({}, set()),
        ({"forms": ("cached",)}, {"sft"}),
        ({"forms": ("joint",), "evaluation.fuse": False}, {"cached"}),
        ({"use.rewards": False}, {"summarizer"}),
        ({"use.summaries": False}, {"summarizer", "summaries"}),
        ({"use.retrieval": False}, {"retrieval"}),
        ({"use.plain_sft": False}, {"plain_sft"}),
        ({"use.text_sft": False}, {"text_sft"}),
        ({"model.path": "somewhere"}, {"model", "warmup"}),
        ({"model.path": "somewhere", "warmup.pretrained": True}, {"model"}),
    ],
)
def test_an_ablation_leaves_out_its_steps_and_nothing_reads_them(mesh, tmp_path, changes, left_out):
    settings = settings_of(quickstart.get_config(), **(BOTH | changes))
    steps = MMSRARec(settings, tmp_path, mesh).steps()
    assert [step.name for step in steps] == [name for name in ALL if name not in left_out]
    for place, step in enumerate(steps):
        assert set(step.inputs) <= {earlier.name for earlier in steps[:place]}
    reads = {step.name: set(step.inputs) for step in steps}
    for form in {"sft", "cached"} - left_out:
        assert reads[form] >= {"summaries", "retrieval"} - left_out
        assert form in reads["evaluation"]
    for baseline in {"plain_sft", "text_sft"} - left_out:
        assert not reads[baseline] & {"summaries", "retrieval"}
        assert baseline in reads["evaluation"]
    if "warmup" not in left_out:
        start_from_it = {
            "summarizer",
            "summaries",
            "plain_sft",
            "text_sft",
            "sft",
            "cached",
        } - left_out
        assert all("warmup" in reads[name] for name in start_from_it)


@pytest.mark.parametrize("method", [MMSRARec, MLLMSRec])
def test_baselines_beside_a_method_change_nothing_of_it(mesh, tmp_path, method):
    def records(**use):
        config = settings_of(quickstart.get_config("mllm_srec"), **BOTH | use)
        return {
            step.name: (step.config, step.inputs) for step in method(config, tmp_path, mesh).steps()
        }

    with_both, with_none = records(), records(**{"use.plain_sft": False, "use.text_sft": False})
    alone = {"plain_sft", "text_sft"}
    assert set(with_both) - set(with_none) <= alone
    same = set(with_none) - {"evaluation"}
    assert {name: with_both[name] for name in same} == {name: with_none[name] for name in same}


@pytest.mark.parametrize("method", [MMSRARec, ScalingPoint])
def test_every_step_that_trains_records_what_export_reads(mesh, tmp_path, method):
    steps = method(settings_of(quickstart.get_config(), **BOTH), tmp_path, mesh).steps()
    trained = [step for step in steps if step.name in SECTIONS]
    assert len(trained) == (6 if method is MMSRARec else 1)
    for step in trained:
        assert {"path", "dtype", "max_pixels"} <= set(step.config["model"])
        assert "lora_alpha" in step.config[SECTIONS[step.name]]


def test_a_model_that_no_step_has_made_is_not_replaced_by_another(mesh, tmp_path):
    """Tokenizer and shape are there, the weights of the warm-up and of SFT are not."""
    settings = settings_of(
        quickstart.get_config(),
        **{"model.tiny.hidden": 16, "model.tiny.heads": 2, "model.tiny.kv_heads": 1,
           "model.tiny.layers": 1, "data.toyshop.num_users": 30, "data.toyshop.num_items": 30,
           "data.toyshop.num_groups": 3},
    )  # fmt: skip
    run = MMSRARec(settings, tmp_path, mesh)
    for name, make in (("data", run.data), ("model", run.write_model_directory)):
        (tmp_path / name).mkdir()
        make(tmp_path / name)
    with pytest.raises(UserError, match="warmup/weights: no weights here"):
        run.base.load("test")
    random = BaseModel(settings, tmp_path, mesh, warmed_up=False)
    assert random.steps == ["model"] and random.load("test") is not None
    with pytest.raises(UserError, match="sft/weights: no weights here"):
        random.trained("test", "sft")


def test_a_pretrained_base_is_made_by_no_step_but_a_warm_up(mesh, tmp_path):
    settings = settings_of(base.get_config(), **{"model.path": str(tmp_path)})
    found = BaseModel(settings, tmp_path / "run", mesh)
    assert found.is_pretrained and found.steps == [] and found.path == tmp_path
    config = base.get_config()
    settings = settings_of(config, **{"model.path": str(tmp_path), "warmup.pretrained": True})
    found = BaseModel(settings, tmp_path / "run", mesh)
    assert found.steps == ["warmup"] and found.settings("warmup").trainable == "connector"
    assert BaseModel(settings, tmp_path / "run", mesh, warmed_up=False).steps == []
    scratch = BaseModel(settings_of(base.get_config()), tmp_path / "run", mesh)
    assert scratch.steps == ["model", "warmup"] and scratch.settings("warmup").trainable == "full"


def test_a_point_of_a_scaling_study_refuses_a_warm_up(mesh, tmp_path):
    changes = {"model.path": "somewhere", "warmup.pretrained": True}
    with pytest.raises(UserError, match="config.warmup.pretrained=True: a point"):
        ScalingPoint(settings_of(base.get_config(), **changes), tmp_path, mesh)


@pytest.mark.parametrize("model", ["molar", "sasrec"])
def test_item_features_are_those_of_the_warmed_up_model(mesh, tmp_path, model):
    changes = {"model.path": "somewhere", "warmup.pretrained": True}
    steps = Sequential(settings_of(base.get_config(model), **changes), tmp_path, mesh).steps()
    made = ["warmup", "features"] if model == "molar" else []
    assert [step.name for step in steps] == ["data", *made, model, "evaluation"]
    if made:
        assert set(steps[2].inputs) == {"data", "warmup"}


@pytest.mark.parametrize(
    ("step", "changes", "message"),
    [
        ("sft", {"sft.trainable": "connector"}, "reads text only and has no connector"),
        ("warmup", {"warmup.pretrained": True}, "reads text only and has no connector"),
        ("sft", {"sft.trainable": "connector+lora", "use.images": False}, "use.images=False"),
        ("sft", {"sft.trainable": "connector", "sft.patches": 0}, "config.sft.patches=0"),
        ("text_sft", {"sft.trainable": "connector"}, "step text_sft shows none"),
    ],
)
def test_a_connector_that_is_not_there_is_named(
    mesh, tmp_path, monkeypatch, step, changes, message
):
    settings = settings_of(base.get_config(), **{"model.path": str(GOLDEN)}, **changes)
    found = BaseModel(settings, tmp_path, mesh)
    field = f"config.{SECTIONS[step]}.trainable='{found.settings(step).trainable}'"
    if "text only" in message:  # families without a tower
        found.check(step)
        shape = dataclasses.replace(config_from_hf(read_json(GOLDEN / "config.json")), vision=None)
        monkeypatch.setattr(base_model, "config_from_hf", lambda raw: shape)
    with pytest.raises(UserError, match=message) as raised:
        found.check(step)
    with pytest.raises(UserError, match="a connector learns from images, but no item has an image"):
        found.check(step, has_images=False)
    assert str(raised.value).startswith(field)
    BaseModel(settings_of(base.get_config(), **{"model.path": "nowhere"}), tmp_path, mesh).check(
        "sft"
    )


def test_a_fused_row_without_reranking_is_refused():
    with pytest.raises(
        UserError, match="evaluation.fuse=True, but .* set config.evaluation.rerank"
    ):
        settings_of(quickstart.get_config(), **{"forms": ("joint",), "evaluation.fuse": True})
    settings_of(quickstart.get_config(), **{"forms": ("cached",), "evaluation.fuse": True})


def test_text_sft_in_a_run_without_images_is_refused():
    with pytest.raises(UserError, match="use.text_sft=True, but config.use.images=False"):
        settings_of(quickstart.get_config(), **{"use.text_sft": True, "use.images": False})


def test_models_beside_the_retriever_read_what_the_run_makes_of_items(mesh, tmp_path):
    changes = {"also_sequential": ("molar", "gru4rec")}
    run = MMSRARec(settings_of(quickstart.get_config(), **changes), tmp_path, mesh)
    reads = {step.name: list(step.inputs) for step in run.steps()}
    assert reads["features"] == ["data", "model", "warmup", "summaries"]  # keywords are shown
    assert reads["molar"] == ["data", "features"] and reads["gru4rec"] == ["data"]
    assert reads["sasrec"] == ["data"] and reads["retrieval"] == ["data", "sasrec"]
    trained = [name for name in reads["evaluation"] if name in reads and name in MODELS]
    assert trained == ["sasrec", "molar", "gru4rec"]
    changes |= {"prompts.candidate_keywords": False}
    run = MMSRARec(settings_of(quickstart.get_config(), **changes), tmp_path, mesh)
    reads = {step.name: list(step.inputs) for step in run.steps()}
    assert reads["features"] == ["data", "model", "warmup"]
    for twice in (("sasrec",), ("molar", "molar")):
        with pytest.raises(UserError, match="config.also_sequential=.*name each once"):
            settings_of(quickstart.get_config(), **{"also_sequential": twice})


@pytest.mark.parametrize("field", ["last_prefixes", "approximate_above"])
def test_what_is_searched_for_neighbors_is_of_the_step_retrieval_alone(mesh, tmp_path, field):
    def recorded(changes):
        steps = MMSRARec(settings_of(quickstart.get_config(), **changes), tmp_path, mesh).steps()
        return {step.name: step.config for step in steps}

    before, after = recorded({}), recorded({f"retrieval.{field}": 3})
    assert {name for name in before if before[name] != after[name]} == {"retrieval"}


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_negatives_of_the_retriever_make_stage_3_depend_on_it(mesh, tmp_path, share):
    changes = BOTH | {"sft.retriever_negatives": share, "use.retrieval": False}
    steps = MMSRARec(settings_of(quickstart.get_config(), **changes), tmp_path, mesh).steps()
    reads = {step.name: step.inputs for step in steps}
    assert ("sasrec" in reads["sft"]) == (share > 0)
    assert not any("sasrec" in reads[name] for name in ("plain_sft", "text_sft", "cached"))
