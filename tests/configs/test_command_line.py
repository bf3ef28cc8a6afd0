"""Fields of a config as flags: every kind of value, and one line for each mistake."""

import pytest
from absl import flags
from ml_collections import config_flags

from mmsrec_jax.methods.settings import Settings
from mmsrec_jax.runtime import startup
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import from_config


def parse(*arguments: str) -> Settings:
    argv = ["program", "--config=configs/movielens.py", *arguments]
    known = flags.FlagValues()
    holder = config_flags.DEFINE_config_file(
        "config", None, "", known, lock_config=True, sys_argv=argv
    )
    startup.parse_flags(argv, known)
    return from_config(Settings, holder.value)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def test_every_kind_of_field_can_be_set():
    found = parse(
        "--config.sft.steps=300",
        "--config.sft.learning_rate=1e-3",
        "--config.sft.tasks.rank=0",
        "--config.use.images=False",
        "--config.data.rating_threshold=3.5",
        "--config.data.category_field=kind",
        '--config.data.text_fields=("title", "plot")',
        "--config.evaluation.k=(1, 15)",
        "--config.data.toyshop.history=(3, 5)",
        "--config.hm4sr.category_separator=None",
        "--config.seed=7",
        "--config.sasrec.seed=1",
    )
    assert (found.sft.steps, found.sft.learning_rate, found.sft.tasks["rank"]) == (300, 1e-3, 0.0)
    assert found.use.images is False
    assert (found.data.rating_threshold, found.data.category_field) == (3.5, "kind")
    assert found.data.text_fields == ("title", "plot")
    assert (found.evaluation.k, found.data.toyshop.history) == ((1, 15), (3, 5))
    assert found.hm4sr.category_separator is None  # the experiment has " "
    assert (found.seed, found.data.seed, found.sasrec.seed, found.sft.seed) == (7, 7, 1, 7)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.sft.stpes=5", "--config.sft.stpes: the config has no such field; did you mean "
         "'steps'?"),
        ("--config.sfr.steps=5", "--config.sfr.steps: the config has no such field"),
        ("--config.sft.tasks.rnak=1", "--config.sft.tasks.rnak: .*did you mean 'rank'?"),
        ("--config.sft.steps=abc", "--config.sft.steps=abc: invalid literal for int"),
        ("--config.sft.steps=1.5", "--config.sft.steps=1.5: invalid literal for int"),
        ("--config.use.images=Flase", "--config.use.images=Flase: .*Non-boolean"),
        ("--config.sft=5", "--config.sft=5: .*is not a dict"),
        ("--config.sft.steps=0", "config.sft.steps=0: must be at least 1"),
        ("--config.evaluation.k=(1, 'a')", r"config.evaluation.k=\(1, 'a'\): must be tuple of int"),
        ("--config.evaluation.k=(1, 22)", r"config.evaluation.k=\(1, 22\): .*at most 21"),
        ("--config.evaluation.negatives=9", r"k=.*at most 10, .*evaluation.negatives=\(9,\)"),
        ("--config.evaluation.negatives=(30, 30)", r"negatives=\(30, 30\): 30 stands twice"),
        ("--wrokdir=x", "Unknown command line flag 'wrokdir'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_the_field(argument, message):
    with pytest.raises(UserError, match=message) as error:
        parse(argument)
    assert "\n" not in str(error.value)


def test_a_missing_config_file_gets_the_nearest():
    argv = ["program", "--config=configs/bas.py:sasrec"]
    with pytest.raises(UserError, match="no file configs/bas.py; did you mean configs/base.py?"):
        startup.parse_flags(argv, flags.FlagValues())


def test_every_missing_flag_is_named():
    known = flags.FlagValues()
    for name in ("config", "workdir"):
        flags.DEFINE_string(name, None, "", flag_values=known)
        flags.mark_flag_as_required(name, known)
    with pytest.raises(UserError, match="--config and --workdir must be given"):
        startup.parse_flags(["program"], known)
