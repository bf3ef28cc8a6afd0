"""What depends on the data or on the devices is refused right after step `data`, or before it."""

import jax
import pytest

from configs import base, quickstart
from mmsrec_jax import methods
from mmsrec_jax.methods import checks
from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import from_config
from mmsrec_jax.runtime.sharding import make_mesh
from mmsrec_jax.runtime.workdir import run_steps, unfinished

SHOP = {"data.toyshop.num_users": 30, "data.toyshop.num_items": 30, "data.toyshop.num_groups": 3}
LISTS = {"evaluation.negatives": (10,), "evaluation.k": (1, 5), "cached.num_items": 30,
         "cached.num_users": 8, "forms": ("joint", "cached")}  # fmt: skip


def experiment(config, workdir, devices=1, **changes):
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    settings = from_config(Settings, config)
    mesh = make_mesh(devices=jax.devices()[:devices])
    return methods.find(settings.method)(settings, workdir, mesh)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A workdir whose step data is done."""
    workdir = tmp_path_factory.mktemp("shop")
    run = experiment(quickstart.get_config(), workdir, **SHOP, **LISTS)
    run_steps(workdir, run.steps()[:1])
    return workdir


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts.fields": ("title", "descritpion")},
         r"config.prompts.fields=\('title', 'descritpion'\): no item has a text 'descritpion'; "
         "there are title, description"),
        ({"prompts.list_fields": ("movie_title",)}, "config.prompts.list_fields=.*'movie_title'"),
        ({"prompts.image_attributes": ("colour",)},
         r"config.prompts.image_attributes=\('colour',\): no item has an attribute 'colour'; "
         "there are .*color"),
        ({"prompts.fields": (), "prompts.list_fields": (), "use.images": False},
         "config.prompts.fields: the items have no text, and config.use.images is False"),
        ({"evaluation.negatives": (10, 29)},
         "config.evaluation.negatives names 29, but user 'u.*' has only .* unseen items"),
        ({"sft.negatives": 25, "sft.answers": 40, "sft.tasks.rank": 0.0},
         "config.sft.negatives=25: .* items of the catalog are left for user 'u.*'; lower it"),
        ({"cached.num_items": 31}, "config.cached.num_items=31: the catalog has 30; lower it"),
        ({"retrieval.folds": 31}, "config.retrieval.folds=31: the data has 30 users; lower it"),
    ],
)  # fmt: skip
def test_what_the_data_cannot_do_is_refused_before_anything_trains(shop, changes, message):
    run = experiment(quickstart.get_config(), shop, **(SHOP | LISTS | changes))
    begun = sorted(path.name for path in shop.iterdir())
    with pytest.raises(UserError, match=message) as error:
        run_steps(shop, run.steps())
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in shop.iterdir()) == begun  # not even the next step's folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preferences.window": 99, "preferences.step": 99},
         "config.preferences.step=99: no training target has as many interactions before it"),
        ({"preferences.positives": "liked", "preferences.threshold": 5.5},
         "config.preferences.threshold=5.5: no training target is rated as high; lower it"),
        ({"chain.file": '{"user": "nobody", "position": 1, "chain": "Prefers oak."}'},
         "chains.jsonl, line 1: no user 'nobody'"),
        ({"chain.file": '{"user": "u00001", "chain": "Prefers'}, "chains.jsonl, line 1: not valid"),
        ({"evaluation.negatives": (10, 29)}, "config.evaluation.negatives names 29"),
    ],
)  # fmt: skip
def test_so_is_what_it_cannot_do_for_texts_about_users(shop, tmp_path, changes, message):
    if text := changes.get("chain.file"):
        (tmp_path / "chains.jsonl").write_text(text + "\n")
        changes = {"chain.file": str(tmp_path / "chains.jsonl")}
    run = experiment(quickstart.get_config("mllm_srec"), shop, **(SHOP | LISTS | changes))
    with pytest.raises(UserError, match=message) as error:
        run.check_data()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["mmsrarec", "mllm_srec", "scaling"])
def test_what_the_data_can_do_is_not_refused(shop, method):
    """The default names a description, which data need not have; one list leaves nobody short."""
    changes = LISTS | {"prompts.fields": ("title",), "evaluation.negatives": (10, 12)}
    run = experiment(quickstart.get_config(), shop, **SHOP, **changes, method=method)
    run.check_data()


def test_what_the_data_does_not_have_is_said_and_not_told(tmp_path, caplog):
    """Neither ratings nor times: the order of the rows alone."""
    (tmp_path / "run").mkdir()
    write_shop(tmp_path / "shop", "lamp")
    inter = tmp_path / "shop" / "shop.inter"
    rows = [line.split("\t")[:2] for line in inter.read_text().splitlines()]
    inter.write_text("".join("\t".join(row) + "\n" for row in rows))
    run = experiment(
        base.get_config(), tmp_path / "run", **{
            "method": "mllm_srec", "data.root": str(tmp_path / "shop"), "preferences.step": 2,
            "evaluation.negatives": (5,), "evaluation.k": (1,), "sft.negatives": 3,
            "data.user_core": 2, "data.item_core": 2,
        },
    )  # fmt: skip
    with caplog.at_level("WARNING", logger="absl"):
        run_steps(tmp_path / "run", run.steps()[:1])
    assert "config.use.clock: the data has an order and no times, no gaps are told" in caplog.text
    assert "config.preferences.threshold=4: the data has no ratings, all is liked" in caplog.text


def write_shop(root, items: str | None):
    root.mkdir()
    rows = [f"u{user}\ti{(user * 3 + n) % 12}\t{n}" for user in range(12) for n in range(6)]
    header = "user_id:token\titem_id:token\ttimestamp:float"
    (root / f"{root.name}.inter").write_text("\n".join([header, *rows]) + "\n")
    if items is not None:
        lines = [f"i{item}\t{items} {item}" for item in range(12)]
        (root / f"{root.name}.item").write_text(
            "\n".join(["item_id:token\ttitle:token_seq", *lines]) + "\n"
        )


@pytest.mark.parametrize("items", [None, "lamp"])
def test_items_without_texts_and_images_are_nothing_to_train_on(tmp_path, items):
    write_shop(tmp_path / "shop", items)
    changes = {"data.root": str(tmp_path / "shop"), "evaluation.negatives": (5,),
               "evaluation.k": (1,), "sft.negatives": 3}  # fmt: skip
    run = experiment(base.get_config(), tmp_path / "run", **changes)
    (tmp_path / "run").mkdir()
    if items is None:
        with pytest.raises(UserError, match="the items have no text and no image, .* .item file"):
            run_steps(tmp_path / "run", run.steps())
        alone = experiment(base.get_config("sasrec"), tmp_path / "run", **changes)
        run_steps(tmp_path / "run", alone.steps()[:1])  # a sequential recommender needs none
    else:
        run_steps(tmp_path / "run", run.steps()[:1])  # titles alone, although the default has more


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sft.batch_size": 15}, "config.sft.batch_size=15: must be a multiple of 2, the devices"),
        ({"sft.batch_size": 6, "sft.micro_batch": 3}, "config.sft.micro_batch=3: .* multiple of 2"),
        ({"cached.num_items": 95}, "config.cached.num_items=95: must be a multiple of 2"),
        ({"summaries.batch_size": 9}, "config.summaries.batch_size=9: must be a multiple of 2"),
        ({"sasrec.batch_size": 9}, "config.sasrec.batch_size=9: must be a multiple of 2"),
        ({"evaluation.batch_size": 9}, "config.evaluation.batch_size=9: must be a multiple of 2"),
        ({"summarizer.patches": 0}, "config.summarizer.patches=0: the prompts of step summarizer"),
        ({"warmup.patches": 0}, "config.warmup.patches=0: the prompts of step warmup show images"),
        ({"method": "mllm_srec", "understanding.patches": 0, "cached.num_items": 96},
         "config.understanding.patches=0: the prompts of step visual_answers show images"),
        ({"method": "mllm_srec", "preferences.batch_size": 9},
         "config.preferences.batch_size=9: must be a multiple of 2"),
        ({"method": "mllm_srec", "understanding.batch_size": 9},
         "config.understanding.batch_size=9: must be a multiple of 2"),
        ({"method": "mllm_srec", "writer.micro_batch": 1, "writer.batch_size": 2},
         "config.writer.micro_batch=1: .* multiple of 2"),
        ({"features.batch_size": 9}, "config.features.batch_size=9: must be a multiple of 2"),
        ({"input_shards": 4}, "config.sft.batch_size=10: must be a multiple of 4, the parts"),
    ],
)  # fmt: skip
def test_a_batch_that_the_devices_cannot_share_is_refused_at_the_start(tmp_path, changes, message):
    changes = {"features.batch_size": 128} | changes
    run = experiment(quickstart.get_config("full"), tmp_path, devices=2, **changes)
    names = [step.name for step in run.steps()]
    with pytest.raises(UserError, match=message):
        checks.check_machine(run.config, names, run.mesh)


def test_every_experiment_fits_one_device_and_reads_in_steps_that_exist(tmp_path):
    seen = set()
    for variant in ("full", "mllm_srec"):
        run = experiment(quickstart.get_config(variant), tmp_path)
        names = [step.name for step in run.steps()]
        checks.check_machine(run.config, names, run.mesh)
        seen.update(names)
    scaling = experiment(quickstart.get_config(), tmp_path, method="scaling")
    seen.update(step.name for step in scaling.steps())
    assert seen >= set(checks._READS)


def test_steps_that_are_finished_ask_nothing_of_the_devices(shop):
    """A run of one device is opened on a machine with more."""
    run = experiment(quickstart.get_config(), shop, **SHOP, **LISTS)
    steps = run.steps()
    names = [step.name for step in steps]
    assert unfinished(shop, steps) == names[1:]  # data is done
    assert unfinished(shop, steps, ["data", "sft"]) == ["sft"]
    changed = experiment(quickstart.get_config(), shop, **SHOP, **LISTS, **{"data.user_core": 2})
    assert unfinished(shop, changed.steps()) == names
