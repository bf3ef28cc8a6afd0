"""Experiments: they read as settings, override what they say, and their seeds follow one."""

import dataclasses
import math
import typing
from collections.abc import Mapping

import pytest
from ml_collections import ConfigDict

from configs import amazon2023, base, beauty, microlens, movielens, quickstart, scaling
from mmsrec_jax.inputs.recommend import RECOMMEND_TASKS as ALL_TASKS
from mmsrec_jax.methods import several
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.rl.rewards import REWARDS
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import as_dict, from_config, sections, to_config
from mmsrec_jax.sequential import registry

ALL = [
    *((amazon2023, variant) for variant in ("", "core", "small", *base.SEQUENTIAL_MODELS)),
    *((base, variant) for variant in ("", *base.SEQUENTIAL_MODELS)),
    *(
        (beauty, variant)
        for variant in ("", "small", "cached", "features", "mllm_srec", *base.SEQUENTIAL_MODELS)
    ),
    *(
        (microlens, variant)
        for variant in ("", "small", "cached", "features", *base.SEQUENTIAL_MODELS)
    ),
    *(
        (movielens, variant)
        for variant in ("", "smoke", "titles", "small", "latest_small", *base.SEQUENTIAL_MODELS)
    ),
    *(
        (quickstart, variant)
        for variant in ("", "full", "long", "seeds", "mllm_srec", "both", "own")
    ),
    *((scaling, f"size={size}") for size in scaling.SIZES),
]


def seeds(config: ConfigDict, path: str = "config") -> dict[str, int]:
    found = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            found |= seeds(value, f"{path}.{name}")
        elif name == "seed":
            found[f"{path}.seed"] = value
    return found


@pytest.mark.parametrize(("experiment", "variant"), ALL, ids=[f"{m.__name__}:{v}" for m, v in ALL])
def test_every_experiment_is_within_the_ranges_and_survives_the_way_there_and_back(
    experiment, variant
):
    config = experiment.get_config(variant)
    settings = from_config(Settings, config)
    assert from_config(Settings, to_config(settings)) == settings
    section = settings.sequential(settings.sequential_model)
    assert section is getattr(settings, settings.sequential_model)
    assert type(section) is registry.MODELS[settings.sequential_model].settings
    assert config.is_locked


@pytest.mark.parametrize("experiment", [amazon2023, base, beauty, microlens, movielens])
def test_a_variant_is_a_sequential_model_by_itself(experiment):
    assert experiment.get_config().method == "mmsrarec"
    for name in base.SEQUENTIAL_MODELS:
        config = experiment.get_config(name)
        assert (config.method, config.sequential_model) == ("sequential", name)


@pytest.mark.parametrize("experiment", [beauty, microlens])
def test_models_on_features_have_the_size_of_sasrec_and_read_text_alone(experiment):
    config = experiment.get_config("features")
    alone = experiment.get_config("sasrec")
    assert config.sasrec.to_dict() == alone.sasrec.to_dict()
    for name in ("molar", "hm4sr"):
        section = config[name]
        assert section.contents == ("text",)
        for field in ("dim", "layers", "dropout", "steps", "patience", "batch_size"):
            assert section[field] == config.sasrec[field], (name, field)


def test_the_base_is_the_defaults():
    assert from_config(Settings, base.get_config()) == Settings()


def test_every_sequential_model_has_its_section_and_its_variant():
    sections = {field.name: field.default_factory for field in dataclasses.fields(Settings)}
    assert sorted(base.SEQUENTIAL_MODELS) == sorted(registry.MODELS)
    for name, model in registry.MODELS.items():
        assert sections[name] is model.settings


def test_parts_of_the_input_are_those_of_the_experiment_unless_set():
    config = base.get_config()
    config.input_shards = 4
    config.sft.input_shards = 8
    parts = [config[name].input_shards for name in ("warmup", "summarizer", "sft")]
    assert parts == [4, 4, 8]


@pytest.mark.parametrize("experiment", [base, beauty, movielens, quickstart])
def test_a_seed_set_by_itself_leaves_the_others_to_follow_the_experiment(experiment):
    config = experiment.get_config()
    config.seed = 3
    assert set(seeds(config).values()) == {3}
    config.data.seed = config.evaluation.seed = 0
    own = {"config.data.seed", "config.evaluation.seed"}
    assert seeds(config) == {name: 0 if name in own else 3 for name in seeds(config)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sft.negatives": 0}, "config.sft.negatives=0: must be at least 1"),
        ({"sft.learning_rate": -1e-4}, "config.sft.learning_rate=-0.0001: must be at least 1e-10"),
        ({"warmup.noise": 1.5}, "config.warmup.noise=1.5: must be at least 0 and at most 1"),
        ({"sft.warmup_steps": 2000}, "config.sft.warmup_steps=2000: must be below steps=2000"),
        ({"sft.micro_batch": 48}, "config.sft.micro_batch=48: must divide batch_size=64"),
        (
            {"summarizer.temperature": 0.0},
            "config.summarizer.temperature=0.0: must be at lea",
        ),
        ({"summarizer.num_generations": 1}, "config.summarizer.num_generations=1: must be at l"),
        ({"summarizer.micro_batch": 12}, "config.summarizer.micro_batch=12 would split a group"),
        ({"summarizer.micro_batch": 48}, "config.summarizer.micro_batch=48 does not divide"),
        ({"summarizer.distractors": 64}, "config.summarizer.distractors=64 must be below"),
        ({"sasrec.dropout": 1.0}, "config.sasrec.dropout=1.0: must be at least 0 and at most 0.99"),
        ({"sasrec.heads": 3}, "config.sasrec.heads=3: must divide dim=64"),
        ({"sasrec.loss": "sofmax"}, "config.sasrec.loss='sofmax': .*; did you mean 'softmax'?"),
        ({"molar.contents": ("text", "sound")}, "config.molar.contents=.*: must each be one of"),
        ({"hm4sr.contents": ()}, r"config.hm4sr.contents=\(\): name one or more"),
        ({"model.tiny.kv_heads": 3}, "config.model.tiny.kv_heads=3: must divide heads=4"),
        ({"model.tiny.hidden": 28}, "config.model.tiny.hidden=28: over heads=4 it must give a mul"),
        ({"model.tiny.vision_hidden": 18}, "config.model.tiny.vision_hidden=18: over vision_heads"),
        ({"model.tiny.vocab_size": 261}, "config.model.tiny.vocab_size=261: must be at least 262"),
        (
            {"data.source": "toyshop", "data.root": "shop"},
            "config.data.root='shop': .*source=atomic",
        ),
        ({"data.source": "amazon_reviews_2014/Beautty"}, "config.data.source=.*2014/Beauty?"),
        ({"data.source": "toyshop", "data.max_users": 9}, "config.data.max_users=9: .*'toyshop'"),
        ({"model.remat": "some"}, "config.model.remat='some': must be one of 'none', 'full'"),
        ({"data.max_users": -1}, "config.data.max_users=-1: must be at least 0"),
        ({"data.test_quantile": 0.8}, "config.data.validation_quantile=0.8: must be below"),
        ({"data.split_target": "last"}, "config.data.split='leave_one_out' has one target a user"),
        ({"data.toyshop.history": (9, 8)}, r"config.data.toyshop.history=\(9, 8\): the longest"),
        ({"retrieval.folds": 0}, "config.retrieval.folds=0: must be at least 1"),
        ({"prompts.history": -1}, "config.prompts.history=-1: must be at least 0"),
        ({"prompts.attribute_separator": ""}, "config.prompts.attribute_separator='': nothing can"),
        ({"prompts.templates": "ful"}, "config.prompts.templates='ful': .*did you mean 'full'?"),
        ({"evaluation.k": (0, 5)}, r"config.evaluation.k=\(0, 5\): must each be at least 1"),
        ({"sequential_model": "sasrek"}, "config.sequential_model='sasrek'.*'sasrec'?"),
        ({"method": "model"}, "config.method='model': must be one of 'mmsrarec'"),
        ({"profile": "3"}, "config.profile='3' is not FIRST:LAST"),
        ({"seeds": (1, 1)}, r"config.seeds=\(1, 1\): 1 stands twice; name each once"),
        ({"seeds": (0,), "method": "scaling"}, "none for a point of a scaling study"),
        ({"use.sft": False, "method": "mllm_srec"}, "config.use.sft=False is an .* of mmsrarec"),
        ({"use.sft": False, "forms": ("joint", "cached")}, "use.sft=False, but .* is learned"),
        (
            {"use.sft": False, "evaluation.generate": 4},
            "generate=4, but the task .* is not trained",
        ),
        ({"seed": 2**32}, "config.seed=4294967296: must be at least 0 and at most 2,147,483,647"),
        ({"mesh.data": 0}, "config.mesh.data=0: must be at least 1, or -1"),
        ({"mesh.data": -1}, "config.mesh.data=-1 and config.mesh.fsdp=-1: one of them"),
        ({"sft.tasks": dict.fromkeys(ALL_TASKS, 0.0)}, "config.sft.tasks: all shares are 0"),
        (
            {"sft.tasks": {**dict.fromkeys(ALL_TASKS, 0.0), "align": 1.0}, "use.summaries": False},
            "config.sft.tasks gives only align a share, but config.use.summaries=False",
        ),
        ({"sft.negatives": 32}, "config.sft.answers=32: .*config.sft.negatives=32 has 33 labels"),
        ({"sft.negatives": 26}, "config.sft.negatives=26: the task rank has .* 26 in all"),
        ({"summarizer.weights": dict.fromkeys(REWARDS, 0.0)}, "summarizer.weights: all are 0"),
        (
            {
                "summarizer.weights": {**dict.fromkeys(REWARDS, 0.0), "image_contrastive": 1.0},
                "use.images": False,
            },
            "config.summarizer.weights: image_contrastive alone is not 0",
        ),
        (
            {"warmup.tasks.fuse": 0.5, "understanding.questions": (), "understanding.mode": "both"},
            "config.warmup.tasks.fuse=0.5 teaches to answer config.understanding.questions",
        ),
        ({"cached.tail": 600}, "config.cached.tail=600: must be at most item_length=512"),
        ({"bert4rec.mask_rate": 0.0, "bert4rec.last_rate": 0.0}, "nothing would be masked"),
        ({"prompts.fields": ("title", "")}, r"config.prompts.fields=.*: '' is empty; leave it out"),
        ({"evaluation.k": (5, 5)}, r"config.evaluation.k=\(5, 5\): 5 stands twice"),
        ({"data.root": "a\x00b"}, r"config.data.root='a\\x00b': contains the character"),
        ({"data.category_field": "\x1b[2J"}, r"config.data.category_field=.*: contains the char"),
        ({"profile": "1:" + "9" * 5000}, "is not FIRST:LAST"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(fields, message):
    config = base.get_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=message):
        from_config(Settings, config)


def numbers():
    """(section, its class, field) of every field of a config that is a number or holds numbers."""
    for name, cls in sections(Settings):
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            kinds = {hints[field.name], *typing.get_args(hints[field.name])}
            if kinds & {int, float}:
                yield name, cls, field


def replaced(value, element):
    """`value` with its numbers, or those in it, replaced."""
    if isinstance(value, Mapping):
        return {**value, next(iter(value)): element}
    return (element, *value[1:]) if isinstance(value, tuple) else element


@pytest.mark.parametrize(
    ("section", "cls", "field"), [pytest.param(*found, id=f"{found[0]}.{found[2].name}")
                                  for found in numbers()],
)  # fmt: skip
def test_every_number_has_a_range_and_is_refused_outside_it(section, cls, field):
    limits = field.metadata["limits"]
    low = limits.low if limits.above is None else limits.above
    high = limits.high if limits.below is None else limits.below
    assert low is not None and high is not None, "a setting without a smallest or largest value"
    default = getattr(cls(), field.name)
    whole = isinstance(default, int) or isinstance(default, tuple)
    outside = [low - 1, high + 1, -(10**30), 10**30]
    if not whole:
        outside += [math.nan, math.inf, -math.inf]
    if limits.above is not None or limits.below is not None:
        outside += [low, high]
    for value in outside:
        changed = {**dataclasses.asdict(cls()), field.name: replaced(default, value)}
        with pytest.raises(UserError) as error:
            from_config(cls, changed, section)
        message = str(error.value)
        assert message.startswith(f"{section}.{field.name}") and "\n" not in message
        assert "must" in message.partition(": ")[2]


def test_what_changes_no_result_is_in_no_record():
    config = base.get_config()
    before = as_dict(from_config(Settings, config))
    config.summarizer.gather_weights = False
    config.sft.offload_optimizer = config.warmup.offload_optimizer = True
    config.data.download_page = "https://example.org"
    assert as_dict(from_config(Settings, config)) == before
    config.sft.micro_batch = 16
    assert as_dict(from_config(Settings, config)) != before


def test_a_misspelt_variant_gets_the_nearest():
    with pytest.raises(UserError, match="did you mean configs/beauty.py:sasrec"):
        beauty.get_config("sasrecs")


def test_latest_small_is_mllm_srec_with_what_ml_1m_lacks():
    found = from_config(Settings, movielens.get_config("latest_small"))
    assert (found.method, found.forms) == ("mllm_srec", ("cached",))
    assert (found.data.split, found.data.split_target) == ("global_time", "last")
    assert (found.preferences.threshold, found.preferences.positives) == (4.0, "liked")
    assert found.data.rating_threshold is None  # low ratings stay, as negatives
    assert found.use.images and found.use.clock and found.prompts.ratings and found.prompts.pauses
    assert found.evaluation.fuse and not found.evaluation.users


def test_runs_of_several_seeds_differ_in_what_is_random_but_data_and_candidates():
    config = quickstart.get_config("seeds")
    config.seed = 5  # that of the runs is theirs
    found = several.runs(config)
    assert list(found) == ["seed-0", "seed-1", "seed-2"] and config.seeds == (0, 1, 2)
    same = {"config.data.seed", "config.data.toyshop.seed", "config.evaluation.seed"}
    for seed, run in enumerate(found.values()):
        assert (run.seed, run.seeds) == (seed, ())
        own = seeds(to_config(run))
        assert own == {name: 0 if name in same else seed for name in own}
    config.data.toyshop.seed = 9
    assert {run.data.toyshop.seed for run in several.runs(config).values()} == {9}


def test_both_methods_have_their_own_settings_on_one_shop():
    config = quickstart.get_config("both")
    config.cached.steps, config.mllm_srec.cached.steps, config.seed = 400, 500, 3
    first, second = several.runs(config).values()
    alone = [quickstart.get_config(variant) for variant in ("", "mllm_srec")]
    for own, steps in zip(alone, (400, 500), strict=True):
        own.cached.steps, own.seed = steps, 3
    for section in ("understanding", "preferences", "writer"):  # which MMSRARec does not read
        alone[0][section] = config[section]
    assert [first, second] == [from_config(Settings, own) for own in alone]
