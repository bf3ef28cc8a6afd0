"""Settings as frozen dataclasses beside the code that reads them, and as a config for the command
line.

A settings class gives each field its type, its one default, a line of description and, where there
is one, its range. `to_config` makes the `ConfigDict` that experiments override and the command line
sets; `from_config` reads it back, typed and checked, before anything runs.
"""

import dataclasses
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mmsrec_jax.runtime.errors import UserError

T = TypeVar("T")


def setting(
    default: T,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Collection[Any] | None = None,
    follows: str = "",
) -> T:
    """A field of a settings class.

    Args:
      default: a mapping is copied for each instance.
      doc: one line, for docs/configuration.md.
      low, high: smallest and largest value that makes sense, both included.
      choices: the values it may have.
      follows: top-level field whose value it takes unless it is set itself (`seed`).
    """
    metadata = {"doc": doc, "low": low, "high": high, "choices": choices, "follows": follows}
    if isinstance(default, Mapping):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def group(settings: type[T]) -> T:
    """A field of a settings class that is itself a settings class, with its defaults."""
    return dataclasses.field(default_factory=settings)


def to_config(settings: Any) -> ConfigDict:
    """The fields of `settings`, nested, as a config that can be overridden."""
    config = ConfigDict()
    _fill(config, settings, config)
    return config


def _fill(config: ConfigDict, settings: Any, root: ConfigDict) -> None:
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            config[field.name] = ConfigDict()
            _fill(config[field.name], value, root)
        elif follows := field.metadata.get("follows"):
            config[field.name] = root.get_oneway_ref(follows)
        elif value is None:
            config[field.name] = placeholder(_kinds(hints[field.name])[0])
        else:
            config[field.name] = dict(value) if isinstance(value, Mapping) else value


def from_config(cls: type[T], config: Mapping[str, Any], name: str = "config") -> T:
    """The settings that `config` holds.

    Raises:
      UserError: a value of the wrong type or outside its range; names the field as a user sets it.
    """
    hints, values = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        where, kind, value = f"{name}.{field.name}", hints[field.name], config[field.name]
        if dataclasses.is_dataclass(kind):
            values[field.name] = from_config(kind, value, where)
        else:
            values[field.name] = _checked(where, field.metadata, _kinds(kind), value)
    return cls(**values)


def as_dict(settings: Any) -> dict[str, Any]:
    """For the record of a run's step: nested dicts of plain values."""
    return dataclasses.asdict(settings)


def describe(cls: type, name: str = "config") -> Iterator[tuple[str, str, Any, Mapping[str, Any]]]:
    """(full name, type, default, metadata) of every field, depth first, in order."""
    hints, defaults = typing.get_type_hints(cls), cls()
    for field in dataclasses.fields(cls):
        where, kind = f"{name}.{field.name}", hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from describe(kind, where)
        else:
            types_of = " or ".join(getattr(k, "__name__", str(k)) for k in _kinds(kind))
            yield where, types_of, getattr(defaults, field.name), field.metadata


def _kinds(hint: Any) -> list[type]:
    """The plain types of a hint, None left out."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return [k for arg in typing.get_args(hint) if arg is not type(None) for k in _kinds(arg)]
    origin = typing.get_origin(hint) or hint
    return [dict if origin in (Mapping, dict) else origin]


def _checked(where: str, limits: Mapping[str, Any], kinds: list[type], value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if tuple in kinds and isinstance(value, list):
        value = tuple(value)
    if not any(type(value) is kind or kind is Any for kind in kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{where}={value!r}: must be {wanted}, not {type(value).__name__}")
    choices, low, high = (limits.get(name) for name in ("choices", "low", "high"))
    if choices is not None and value not in choices:
        raise UserError(f"{where}={value!r} is none of {', '.join(map(repr, choices))}")
    if low is not None and not value >= low:  # which NaN fails too
        raise UserError(f"{where}={value}: must be at least {low:g}")
    if high is not None and not value <= high:
        raise UserError(f"{where}={value}: must be at most {high:g}")
    return value
