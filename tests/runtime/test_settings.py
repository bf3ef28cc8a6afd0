"""Settings classes: into a config and back, every kind of field, and what is refused."""

import dataclasses
import json
from collections.abc import Mapping

import pytest

from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import (
    Limits,
    Section,
    as_dict,
    describe,
    from_config,
    from_record,
    group,
    sections,
    setting,
    setting_like,
    to_config,
)


@dataclasses.dataclass(frozen=True)
class Inner(Section):
    rate: float = setting(0.5, "A rate.", low=0, below=1)
    kind: str = setting("fast", "A kind.", choices=("fast", "slow"))
    seed: int = setting(0, "Follows.", follows="seed")


@dataclasses.dataclass(frozen=True)
class Other(Inner):
    rate: float = setting_like(Inner, "rate", 0.25)


@dataclasses.dataclass(frozen=True)
class Whole(Section):
    seed: int = setting(0, "Of everything.", low=0)
    steps: int = setting(10, "Updates.", low=1, high=100)
    temperature: float = setting(1.0, "Of samples.", above=0)
    name: str | None = setting(None, "A name.")
    fields: tuple[str, ...] | None = setting(None, "Some fields.")
    threshold: float | None = setting(None, "A threshold.", low=0)
    cutoffs: tuple[int, ...] = setting((1, 5), "Cut-offs.", low=1)
    history: tuple[int, int] = setting((2, 4), "Shortest and longest.", low=1)
    shares: Mapping[str, float] = setting({"b": 0.5, "a": 0.5}, "Shares.", low=0)
    gather: bool = setting(True, "Where arrays are.", recorded=False)
    inner: Inner = group(Inner)
    other: Other = group(Other)

    def check(self, name: str) -> None:
        if self.history[0] > self.history[1]:
            raise UserError(f"{name}.history={self.history}: shortest first")


CHANGED = Whole(
    seed=3,
    steps=7,
    name="x",
    fields=("a", "b"),
    threshold=2.0,
    cutoffs=(3,),
    shares={"a": 1.0, "b": 0.0},
    gather=False,
    inner=Inner(rate=0.0, kind="slow", seed=3),
    other=Other(seed=5),
)


def refused(**changes) -> str:
    config = to_config(Whole())
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises(UserError) as error:
        from_config(Whole, config)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("settings", [Whole(), CHANGED])
def test_into_a_config_and_back(settings):
    assert from_config(Whole, to_config(settings)) == settings
    assert from_config(Whole, to_config(settings).lock()) == settings


def test_a_config_holds_the_defaults_and_takes_overrides():
    config = to_config(Whole()).lock()
    config.steps = 20
    config.inner.update(rate=0.75, kind="slow")
    config.update(name="y", fields=("t",), threshold=3)
    config.cutoffs = (2, 4)
    config.shares.a = 2
    found = from_config(Whole, config)
    assert found == Whole(
        steps=20,
        name="y",
        fields=("t",),
        threshold=3.0,
        cutoffs=(2, 4),
        shares={"a": 2.0, "b": 0.5},
        inner=Inner(rate=0.75, kind="slow"),
    )
    assert type(found.threshold) is float and type(found.shares["a"]) is float
    config.name = None
    assert from_config(Whole, config).name is None
    config.name = "None"  # as `--config.name=None` sets it
    assert from_config(Whole, config).name is None
    with pytest.raises(AttributeError, match='Did you mean "steps"'):
        config.stpes = 5


def test_what_follows_a_field_does_so_until_it_is_set_itself():
    config = to_config(Whole())
    config.seed = 4
    assert (config.inner.seed, config.other.seed) == (4, 4)
    config.inner.seed = 1
    assert (config.seed, config.inner.seed, config.other.seed) == (4, 1, 4)
    config.seed = 6
    assert (config.inner.seed, config.other.seed) == (1, 6)
    own = to_config(CHANGED)  # other.seed=5 is its own, inner.seed=3 is that of the whole
    own.seed = 9
    assert (own.inner.seed, own.other.seed) == (9, 5)


def test_a_section_is_a_config_by_itself():
    config = to_config(Inner(seed=2))
    config.rate = 0.125
    assert from_config(Inner, config, "config.inner") == Inner(rate=0.125, seed=2)


def test_a_field_like_another_has_its_range_and_its_own_default():
    assert (Inner().rate, Other().rate) == (0.5, 0.25)
    assert refused(**{"other.rate": 1.0}) == (
        "config.other.rate=1.0: must be at least 0 and below 1"
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 0, "config.steps=0: must be at least 1 and at most 100"),
        ("steps", 101, "config.steps=101: must be at least 1 and at most 100"),
        ("temperature", 0.0, "config.temperature=0.0: must be above 0"),
        ("temperature", float("nan"), "config.temperature=nan: must be finite"),
        ("temperature", float("inf"), "config.temperature=inf: must be finite"),
        ("threshold", -1.0, "config.threshold=-1.0: must be at least 0"),
        ("inner.rate", 1, "config.inner.rate=1.0: must be at least 0 and below 1"),
        (
            "inner.kind",
            "slwo",
            "config.inner.kind='slwo': must be one of 'fast', 'slow'; did you mean 'slow'?",
        ),
        ("cutoffs", (5, 0), "config.cutoffs=(5, 0): must each be at least 1"),
        ("cutoffs", ("5",), "config.cutoffs=('5',): must be tuple of int"),
        ("history", (2, 3, 4), "config.history=(2, 3, 4): must have 2 elements"),
        ("history", (4, 2), "config.history=(4, 2): shortest first"),
        ("shares.a", -0.5, "config.shares.a=-0.5: must be at least 0"),
    ],
)
def test_a_value_outside_its_range_is_one_line_with_the_name_of_the_field(name, value, message):
    assert refused(**{name: value}) == message


@pytest.mark.parametrize("value", [1, 100])
def test_both_ends_of_a_range_belong_to_it(value):
    config = to_config(Whole())
    config.steps = value
    assert from_config(Whole, config).steps == value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 1.5, "config.steps=1.5: must be int, not float"),
        ("steps", True, "config.steps=True: must be int, not bool"),
        ("gather", 1, "config.gather=1: must be bool, not int"),
        ("temperature", "hot", "config.temperature='hot': must be float, not str"),
        ("temperature", True, "config.temperature=True: must be float, not bool"),
        ("fields", "title", "config.fields='title': must be tuple of str, not str"),
        ("inner", 5, "config.inner=5: must be a section of the config"),
        ("inner", {"rate": 0.5}, "config.inner.kind is missing"),
        ("shares", 5, "config.shares=5: must be float by name, not int"),
        ("shares", {"aa": 1.0}, "config.shares.aa: there is no such field; did you mean 'a'?"),
        ("stpes", 5, "config.stpes: there is no such field; did you mean 'steps'?"),
    ],
)
def test_a_wrong_type_or_name_is_one_line_with_the_name_of_the_field(name, value, message):
    """Of plain mappings, such as a record: a ConfigDict refuses most of these itself."""
    stored = dataclasses.asdict(Whole()) | {name: value}
    with pytest.raises(UserError) as error:
        from_config(Whole, stored)
    assert str(error.value) == message


def test_a_mapping_is_in_one_order_wherever_it_comes_from():
    """Draws by shares depend on the order."""
    for settings in (Whole(), from_config(Whole, to_config(Whole()))):
        assert list(settings.shares) == ["a", "b"]
    assert Whole().shares is not Whole().shares


def test_a_record_leaves_out_what_changes_no_result():
    record = json.loads(json.dumps(as_dict(CHANGED)))
    assert "gather" not in record
    assert as_dict(CHANGED) == as_dict(dataclasses.replace(CHANGED, gather=True))
    assert record["inner"] == {"rate": 0.0, "kind": "slow", "seed": 3}
    assert record["cutoffs"] == [3] and record["shares"] == {"a": 1.0, "b": 0.0}
    assert from_record(Whole, record) == dataclasses.replace(CHANGED, gather=True)
    with pytest.raises(UserError, match="config.data.steps=0: must be at least 1"):
        from_record(Whole, record | {"steps": 0}, "config.data")


def test_limits_in_words():
    assert str(Limits()) == ""
    assert str(Limits(low=0, below=1)) == "at least 0 and below 1"
    assert str(Limits(above=0)) == "above 0"
    assert str(Limits(choices=("a", 2))) == "one of 'a', 2"


def test_descriptions_of_every_field_in_order():
    parts = list(sections(Whole))
    assert parts == [("config", Whole), ("config.inner", Inner), ("config.other", Other)]
    found = {row.name: row for name, part in parts for row in describe(part, name)}
    assert list(found)[:2] == ["config.seed", "config.steps"]
    assert list(found)[-1] == "config.other.seed" and len(found) == 16
    rows = {name: tuple(row)[1:4] for name, row in found.items()}
    assert rows["config.steps"] == ("int", "10", "at least 1 and at most 100")
    assert rows["config.fields"] == ("tuple of str or None", "None", "")
    assert rows["config.cutoffs"] == ("tuple of int", "(1, 5)", "each at least 1")
    assert rows["config.history"] == ("tuple of 2 int", "(2, 4)", "each at least 1")
    assert rows["config.shares"] == ("float by name", "a=0.5, b=0.5", "each at least 0")
    assert rows["config.inner.seed"] == ("int", "config.seed", "")
    assert rows["config.inner.kind"] == ("str", "'fast'", "one of 'fast', 'slow'")
    assert found["config.other.rate"].doc == "A rate."
