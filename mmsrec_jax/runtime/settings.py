"""Settings as frozen dataclasses beside the code that reads them, and as a config for the command
line.

    @dataclasses.dataclass(frozen=True)
    class TrainingSettings(Section):
        steps: int = setting(500, "Updates.", low=1)
        dropout: float = setting(0.1, "Of the input.", low=0, below=1)

A settings class gives each field its type, its one default, a line of description and its range;
every number has a smallest and a largest value. `to_config` makes the `ConfigDict` that experiments
override and the command line sets; `from_config` reads it back, typed and checked, before anything
runs.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard, TypeVar

import numpy as np
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.printable import strange_character

T = TypeVar("T")
MAX_SEED = 2**31 - 1  # jax.random.key takes 32 bits: 0 and 2**32 would be one seed


@dataclasses.dataclass(frozen=True)
class Section:
    """Base of the settings classes. One section of a config, or the whole."""

    def check(self, name: str) -> None:
        """Raises UserError when fields do not fit each other; `name` is the section's, as in
        `config.sft`. `from_config` calls it."""


S = TypeVar("S", bound=Section)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Which values a field may have; of a tuple or a mapping, which elements.

    Attributes:
      low, high: smallest and largest value, both included.
      above, below: the value must be larger, smaller than this.
      choices: the values there are.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()

    def __str__(self) -> str:
        """As "at least 0 and below 1"; empty without limits."""
        if self.choices:
            return "one of " + ", ".join(map(repr, self.choices))
        bounds = (
            ("at least", self.low),
            ("above", self.above),
            ("at most", self.high),
            ("below", self.below),
        )
        return " and ".join(
            f"{word} {_number(value)}" for word, value in bounds if value is not None
        )

    def allow(self, value: Any) -> bool:
        """Whether a value is within them. NaN never is."""
        if self.choices:
            return value in self.choices
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def setting(
    default: T,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Collection[Any] = (),
    follows: str = "",
    recorded: bool = True,
) -> T:
    """A field of a settings class.

    Args:
      default: of a mapping each instance has a copy, in the order of the alphabet.
      doc: one line, for docs/configuration.md.
      low, high, above, below, choices: see `Limits`.
      follows: top-level field whose value a config takes for it unless it is set itself (`seed`).
      recorded: False for what changes no result, such as where arrays are kept: a step that
        finished is then not run again when it changes.
    """
    limits = Limits(low, high, above, below, tuple(choices))
    return _field(default, {"doc": doc, "limits": limits, "follows": follows, "recorded": recorded})


def seed_setting(doc: str) -> int:
    """A field for a seed that follows the experiment's."""
    return setting(0, doc, low=0, high=MAX_SEED, follows="seed")


def setting_like(cls: type, name: str, default: T) -> T:
    """The field `name` of the settings class `cls` with another default."""
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    return _field(default, field.metadata)


def group(settings: type[T]) -> T:
    """A field of a settings class that is itself a settings class, with its defaults."""
    return dataclasses.field(default_factory=settings)


def to_config(settings: Section) -> ConfigDict:
    """The fields of `settings`, nested, as a config that can be overridden."""
    config = ConfigDict()
    _fill(config, settings, settings, config)
    return config


def from_config(cls: type[S], config: Mapping[str, Any], name: str = "config") -> S:
    """The settings that `config` holds.

    Args:
      name: what errors call the section.

    Raises:
      UserError: a field that is missing or unknown, a value of the wrong type or outside its range,
        text with control characters, a list that names something twice or an empty name, values
        that do not fit each other; names the field as a user sets it.
    """
    hints, values = typing.get_type_hints(cls), {}
    names = [field.name for field in dataclasses.fields(cls)]
    if unknown := sorted(set(config) - set(names)):
        raise UserError(f"{name}.{unknown[0]}: there is no such field{_guess(unknown[0], names)}")
    for field in dataclasses.fields(cls):
        where, hint = f"{name}.{field.name}", hints[field.name]
        if field.name not in config:
            raise UserError(f"{where} is missing")
        value = config[field.name]
        if _is_section(hint):
            if not isinstance(value, Mapping | ConfigDict):
                raise UserError(f"{where}={value!r}: must be a section of the config")
            values[field.name] = from_config(hint, value, where)
        else:
            values[field.name] = _checked(where, field, hint, value)
    made = cls(**values)
    made.check(name)
    return made


def check_number(
    name: str,
    value: float,
    kind: type[int] | type[float] = int,
    *,
    low: float | None = None,
    high: float | None = None,
) -> None:
    """Raises UserError for an argument of a public function that is of another kind, not finite or
    out of its range, as for a setting."""
    if isinstance(value, np.generic):
        value = value.item()
    _checked_one(name, Limits(low=low, high=high), kind, value)


def as_dict(settings: Section) -> dict[str, Any]:
    """For the record of a run's step: nested dicts of plain values, without the fields that change
    no result."""
    found = {}
    for field in dataclasses.fields(settings):
        if not field.metadata.get("recorded", True):
            continue
        value = getattr(settings, field.name)
        if isinstance(value, Section):
            value = as_dict(value)
        found[field.name] = dict(value) if isinstance(value, Mapping) else value
    return found


def from_record(cls: type[S], record: Mapping[str, Any], name: str = "config") -> S:
    """The settings that `as_dict` gave; fields that it left out have their defaults.

    Raises:
      UserError: as `from_config`.
    """
    return from_config(cls, _completed(cls, record), name)


def _completed(cls: type[Section], record: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(record)
    for field in dataclasses.fields(cls):
        value = getattr(cls(), field.name)
        if not field.metadata.get("recorded", True):
            found[field.name] = value
        elif isinstance(value, Section) and field.name in found:
            found[field.name] = _completed(type(value), found[field.name])
    return found


class Description(NamedTuple):
    """One field for people: all text. `limits` is empty for a field that may have any value."""

    name: str
    type: str
    default: str
    limits: str
    doc: str


def sections(cls: type[Section], name: str = "config") -> Iterator[tuple[str, type[Section]]]:
    """Full name and class of a section and of those inside it, depth first, in order."""
    yield name, cls
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if _is_section(hints[field.name]):
            yield from sections(hints[field.name], f"{name}.{field.name}")


def describe(cls: type[Section], name: str = "config") -> Iterator[Description]:
    """The fields of one section in order, without those of the sections inside it."""
    hints, defaults = typing.get_type_hints(cls), cls()
    for field in dataclasses.fields(cls):
        hint, value = hints[field.name], getattr(defaults, field.name)
        if _is_section(hint):
            continue
        follows = field.metadata["follows"]
        default = f"config.{follows}" if follows else _shown(value)
        limits = str(field.metadata["limits"])
        if limits and isinstance(value, tuple | Mapping):
            limits = f"each {limits}"
        where = f"{name}.{field.name}"
        yield Description(where, _type_name(hint), default, limits, field.metadata["doc"])


def _is_section(hint: Any) -> TypeGuard[type[Section]]:
    return isinstance(hint, type) and issubclass(hint, Section)


def _field(default: Any, metadata: Mapping[str, Any]) -> Any:
    if isinstance(default, Mapping):
        metadata = {**metadata, "names": tuple(default)}
        return dataclasses.field(default_factory=lambda: _ordered(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _ordered(values: Mapping[str, Any]) -> dict[str, Any]:
    """In the order of the alphabet: random draws by shares depend on the order."""
    return dict(sorted(values.items()))


def _fill(config: ConfigDict, settings: Section, top: Section, root: ConfigDict) -> None:
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        follows = field.metadata.get("follows", "")
        if isinstance(value, Section):
            config[field.name] = ConfigDict()
            _fill(config[field.name], value, top, root)
        elif follows and config is not root and getattr(top, follows, None) == value:
            # A reference of its own for every field: setting one leaves the others.
            config[field.name] = root.get_oneway_ref(follows)
        elif isinstance(value, Mapping):
            config[field.name] = ConfigDict(dict(value))
        elif (kind := _optional(hints[field.name])) is not None:
            config[field.name] = placeholder(kind)
            config[field.name] = value
        else:
            config[field.name] = value


def _optional(hint: Any) -> type | None:
    """The plain type of a field that may be None; None for others."""
    if not isinstance(hint, types.UnionType):
        return None
    (kind,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
    return typing.get_origin(kind) or kind


def _checked(where: str, field: dataclasses.Field, hint: Any, value: Any) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None or value == "None":  # as the command line says it
            return None
        (hint,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
    limits: Limits = field.metadata["limits"]
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise _wrong_type(where, hint, value)
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) != len(value):
            raise UserError(f"{where}={value!r}: must have {len(kinds)} elements")
        if any(type(element) is not kind for kind, element in zip(kinds, value, strict=True)):
            raise UserError(f"{where}={value!r}: must be {_type_name(hint)}")
        found = tuple(
            _checked_one(where, limits, kind, element, tuple(value))
            for kind, element in zip(kinds, value, strict=True)
        )
        if arguments[-1] is ...:
            _check_names(where, found)
        return found
    if origin is Mapping:
        names = field.metadata["names"]
        if not isinstance(value, Mapping | ConfigDict):
            raise _wrong_type(where, hint, value)
        if arguments[1] is Any:  # fields of a config, which are checked where they are put
            return value.to_dict() if isinstance(value, ConfigDict) else dict(value)
        if unknown := sorted(set(value) - set(names)):
            raise UserError(
                f"{where}.{unknown[0]}: there is no such field{_guess(unknown[0], names)}"
            )
        return _ordered(
            {key: _checked_one(f"{where}.{key}", limits, arguments[1], value[key]) for key in value}
        )
    return _checked_one(where, limits, hint, value)


def _checked_one(
    where: str, limits: Limits, kind: type, value: Any, whole: tuple[Any, ...] | None = None
) -> Any:
    """A plain value; `whole` is the tuple that it is an element of."""
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise _wrong_type(where, kind, value)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}={value!r}: must be finite")
    if isinstance(value, str) and (strange := strange_character(value)):
        raise UserError(f"{where}={value!r}: contains the character {strange!r}; leave it out")
    if not limits.allow(value):
        near = _guess(value, limits.choices) if limits.choices else ""
        if whole is not None:
            raise UserError(f"{where}={whole!r}: must each be {limits}{near}")
        raise UserError(f"{where}={value!r}: must be {limits}{near}")
    return value


def _check_names(where: str, values: tuple[Any, ...]) -> None:
    """Of a list of any length; its elements are names, or numbers that each stand for something."""
    seen = set()
    for value in values:
        if isinstance(value, str) and not value.strip():
            raise UserError(f"{where}={values!r}: {value!r} is empty; leave it out")
        if value in seen:
            raise UserError(f"{where}={values!r}: {value!r} stands twice; name each once")
        seen.add(value)


def _wrong_type(where: str, hint: Any, value: Any) -> UserError:
    return UserError(f"{where}={value!r}: must be {_type_name(hint)}, not {type(value).__name__}")


def _guess(name: Any, known: Collection[Any]) -> str:
    near = difflib.get_close_matches(str(name), map(str, known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _type_name(hint: Any) -> str:
    """As "int", "str or None", "tuple of str"."""
    if isinstance(hint, types.UnionType):
        return " or ".join(_type_name(arg) for arg in typing.get_args(hint))
    if hint is type(None):
        return "None"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        count = "" if arguments[-1] is ... else f"{len(arguments)} "
        return f"tuple of {count}{arguments[0].__name__}"
    if origin is Mapping:
        return "fields" if arguments[1] is Any else f"{arguments[1].__name__} by name"
    return hint.__name__


def _number(value: float) -> str:
    """As "0.5", "1e-06", "1,000,000"."""
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and value:
        return ", ".join(f"{key}={element!r}" for key, element in value.items())
    return repr(value)
