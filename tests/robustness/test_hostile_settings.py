"""Settings and flags that make no sense: one line names each, before anything runs or is written.

The ranges of settings have tests of their own, tests/configs; these are whole command lines, and
what is printed.
"""

import json

import hostile
import pytest
from absl import flags

from mmsrec_jax.methods.recommending import Answer, Ranked, Shown
from mmsrec_jax.runtime import startup
from mmsrec_jax.runtime.printable import printable, printable_lines, shortened

SHOP = ["--config=configs/quickstart.py", "--config.data.toyshop.num_users=40",
        "--config.data.toyshop.num_items=40"]  # fmt: skip


def parse(*arguments: str) -> list[str]:
    known = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=known)
    flags.DEFINE_string("user", None, "", flag_values=known)
    flags.DEFINE_list("k", ["1"], "", flag_values=known)
    flags.DEFINE_float("now", None, "", flag_values=known)
    flags.DEFINE_integer("top", 10, "", 1, 100, flag_values=known)
    return startup.parse_flags(["program", *arguments], known)


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--workdir=", ["--workdir=", "is a variable not set?"]),
        ("--workdir=  ", ["--workdir=", "is a variable not set?"]),
        ("--user=", ["--user="]),
        ("--k=", ["--k="]),
        ("--k=1,,5", ["--k="]),
        ("", ["an argument is empty"]),
        ("--now=nan", ["--now=nan", "finite"]),
        ("--now=-inf", ["--now=-inf", "finite"]),
        ("--now=1e999", ["--now=inf", "finite"]),
        ("--now=soon", ["--now=soon"]),
        ("--top=0", ["--top=0", "[1, 100]"]),
        ("--top=101", ["--top=101", "[1, 100]"]),
        ("--top=1.5", ["--top=1.5"]),
        ("--top=" + "9" * 5000, ["--top="]),
        ("--user=\x1b[2J\x1b]0;owned\x07", ["--user=", "\\x1b", "leave it out"]),
        ("--workdir=a\nb", ["--workdir=", "\\n"]),
        ("--workdir=s3://bucket/run", ["--workdir=s3://bucket/run"]),
        ("--config", ["--config="]),
    ],
)
def test_a_flag_without_sense_is_named(argument, named):
    with hostile.refused(*named):
        parse(argument)


def test_flags_with_sense_are_left_alone():
    assert parse("--workdir=a b", "--k=1,5", "--now=-3.5", "--user=Zoë", "run") == [
        "program", "run",
    ]  # fmt: skip


def test_what_a_terminal_would_obey_is_escaped():
    assert printable("\x1b[31mred\x07\r\n") == "\\u001b[31mred\\u0007\\u000d\\u000a"
    assert printable("a\x9b2Jb\x7f") == "a\\u009b2Jb\\u007f"  # C1: a terminal's other escape
    assert printable("gpj.\u202eexe") == "gpj.\\u202eexe"
    assert printable("\udcff") == "\\udcff"
    assert printable("Zoë 東京 🙂 \\ tab") == "Zoë 東京 🙂 \\ tab"
    assert printable_lines("one\ntwo\x0bthree\u2028four") == "one\ntwo\\u000bthree\\u2028four"


def test_of_a_long_message_both_ends_are_shown():
    assert shortened("a" * 800) == "a" * 800
    found = shortened("--field=" + "9" * 5000 + ": lower it")
    assert len(found) <= 800 and found.startswith("--field=9") and found.endswith("9: lower it")


def test_log_lines_and_answers_obey_no_title(caplog):
    record = startup.logging.get_absl_logger().makeRecord(
        "x", 20, __file__, 1, "item %s", ("\x1b[2J\x9b1m",), None
    )
    line = startup.PlainFormatter("%(asctime)s %(message)s", "%H:%M:%S").format(record)
    assert line.endswith("item \\u001b[2J\\u009b1m")
    title = 'lamp\n  1. i9  forged\x1b[2J"\x9b\u202e'
    ranked = Ranked("i1", title, ["\x07"], 1, 0.5, None, None, False)
    answer = Answer(None, "mmsrarec", [Shown("i\r1", title, [])], [], [ranked])
    shown = printable_lines(answer.text())
    assert not any(c in shown for c in "\x1b\r\x07\x9b\u202e") and shown.count("\n") == 5
    assert json.loads(printable_lines(answer.json())) == json.loads(answer.json())


@pytest.mark.robustness
@pytest.mark.parametrize(
    ("program", "arguments", "named"),
    [
        ("train", ["--workdir="], ["--workdir="]),
        ("train", ["--steps=,"], ["--steps="]),
        ("train", ["--steps=evaluaton"], ["--steps", "evaluaton"]),
        ("train", ["extra"], ["unexpected argument 'extra'"]),
        ("train", ["--config.sft.negatives=-3"], ["config.sft.negatives=-3"]),
        ("train", ["--config.sft.learning_rate=-1"], ["config.sft.learning_rate=-1.0"]),
        ("train", ["--config.sft.learning_rate=nan"], ["--config.sft.learning_rate=nan"]),
        ("train", ["--config.sft.learning_rate=1e999"], ["--config.sft.learning_rate=inf"]),
        ("train", ["--config.sft.steps="], ["--config.sft.steps="]),
        ("train", ["--config.sft.steps=0"], ["config.sft.steps=0"]),
        ("train", ["--config.seed=4294967296"], ["config.seed=4294967296"]),
        ("train", ["--config.seed=-1"], ["config.seed=-1"]),
        ("train", ["--config.seeds=(0,0)"], ["config.seeds=(0, 0)"]),
        ("train", ["--config.evaluation.k=(1,"], ["--config.evaluation.k=(1,"]),
        ("train", ["--config.evaluation.k=()"], ["config.evaluation.k=()"]),
        ("train", ["--config.evaluation.negatives=0"], ["config.evaluation.negatives=(0,)"]),
        ("train", ["--config.model.path="], ["--config.model.path="]),
        ("train", ["--config.model.tiny.heads=0"], ["config.model.tiny.heads=0"]),
        ("train", ["--config.retrieval.folds=1000"], ["config.retrieval.folds=1000"]),
        ("train", ["--config.mesh.data=0"], ["config.mesh.data=0"]),
        ("train", ["--config.mesh.data=3"], ["config.mesh: data=3", "1"]),
        ("train", ["--config.data.root=/x\x1b[2J"], ["--config.data.root="]),
        ("evaluate", ["--compare", "run", "--bootstrap=1000000000000"], ["--bootstrap="]),
        ("evaluate", ["--compare", "run", "--bootstrap=0"], ["--bootstrap=0"]),
        ("evaluate", ["--compare", "run", "--seed=-1"], ["--seed=-1"]),
        ("evaluate", ["--compare", "run", "--k=0"], ["--k=0"]),
        ("evaluate", ["--compare", "run", "--k=5,-1"], ["--k=5,-1"]),
        ("evaluate", ["--compare", "run", "--k=" + "9" * 4400], ["--k="]),
        ("evaluate", ["--compare", ""], ["an argument is empty"]),
        ("evaluate", ["--compare", "run", "--out="], ["--out="]),
        ("evaluate", ["run"], ["--compare"]),
        ("export", ["--workdir=w", "--out=o", "--max_shard_gib=nan"], ["--max_shard_gib=nan"]),
        ("export", ["--workdir=w", "--out=o", "--max_shard_gib=0"], ["--max_shard_gib=0"]),
        ("export", ["--workdir=w", "--out=o", "--step=sfr"], ["--step=sfr"]),
        ("recommend", ["--workdir=w", "--user=u", "--top=0"], ["--top=0"]),
        ("recommend", ["--workdir=w", "--user=u", "--now=inf"], ["--now=inf"]),
        ("recommend", ["--workdir=w", "--user="], ["--user="]),
        ("compile", [SHOP[0], "--topology=v9:1"], ["v9"]),
        ("compile", [SHOP[0], "--topology=cpu:1", "--hbm_gib=-1"], ["--hbm_gib=-1"]),
        ("compile", [SHOP[0], "--topology=cpu:1", "--slices=0"], ["--slices=0"]),
        ("scaling", ["run", "--predict=-1"], ["--predict"]),
        ("scaling", ["run", "--predict=nan"], ["--predict"]),
        ("scaling", ["run", "--resamples=0"], ["--resamples=0"]),
        ("scaling", [], ["no runs"]),
    ],
    ids=lambda value: value[-1][:40] if isinstance(value, list) and value else None,
)
def test_a_command_line_without_sense(tmp_path, program, arguments, named):
    folder = tmp_path / "work"
    folder.mkdir()
    if program == "train":
        given = any(argument.startswith("--workdir") for argument in arguments)
        arguments = [*SHOP, *([] if given else [f"--workdir={folder / 'run'}"]), *arguments]
    with hostile.untouched(hostile.launched.ROOT / "launch"), hostile.untouched(folder):
        found = hostile.run(f"launch/{program}.py", *arguments, logs=tmp_path / "logs")
    found.check_refused(*named)


@pytest.mark.robustness
@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--config.prompts.fields=('titel',)", ["config.prompts.fields", "titel", "title"]),
        ("--config.prompts.image_attributes=('hue',)", ["config.prompts.image_attributes", "hue"]),
        ("--config.cached.num_items=64", ["config.cached.num_items=64"]),
        ("--config.evaluation.negatives=(39,)", ["config.evaluation.negatives", "39"]),
    ],
)
def test_a_setting_that_the_data_contradicts(tmp_path, argument, named):
    """Said right after step data, which stays: the corrected command begins with the next step."""
    workdir = tmp_path / "run"
    fits = ["--config.cached.num_items=40", "--config.cached.num_users=8",
            "--config.evaluation.negatives=(20,)"]  # fmt: skip
    found = hostile.run(
        "launch/train.py", *SHOP, *fits, argument, f"--workdir={workdir}", logs=tmp_path / "logs"
    )
    found.check_refused(*named)
    steps = [path.parent.name for path in workdir.glob("*/step.json")]
    assert steps == ["data"]
    assert json.loads((workdir / "data" / "step.json").read_text())["finished"]
