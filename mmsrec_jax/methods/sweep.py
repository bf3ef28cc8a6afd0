"""A sweep: one experiment at several points, which differ in a few settings. See docs/sweeps.md.

A file of configs/sweeps/ has a function `get_sweep` that returns a `Sweep`. Before anything runs,
`points` reads the settings of every point as `launch/train.py` will.
"""

import dataclasses
import itertools
import re
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from mmsrec_jax.methods import experiment, several
from mmsrec_jax.methods.settings import BOTH, Settings, described, shared
from mmsrec_jax.runtime import startup
from mmsrec_jax.runtime.config_utils import differences
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import from_config

_NAME = re.compile(r"[A-Za-z0-9][\w.+=-]{0,79}")
_RESERVED = ("compiled", "logs")  # folders of the sweep itself


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep file says.

    Attributes:
      config: of `launch/train.py`, with its variant, such as "configs/quickstart.py:full".
      points: name -> what the point sets, by field without the leading "config.". The others are
        compared with the first.
      settings: what every point sets, by field; a point's own come after.
    """

    config: str
    points: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Point:
    """One point, its settings read and checked.

    Attributes:
      name: also of its folder in the sweep's workdir.
      sets: what it sets, by field, without what all points set.
      arguments: of `launch/train.py`, without `--workdir`.
      runs: (folder in the point's own, settings) of each seed; one, "", without `config.seeds`.
    """

    name: str
    sets: Mapping[str, Any]
    arguments: tuple[str, ...]
    runs: tuple[tuple[str, Settings], ...]

    @property
    def settings(self) -> Settings:
        """Those of the first seed."""
        return self.runs[0][1]

    @property
    def recorded(self) -> list[dict[str, Any]]:
        """Of every seed, all that decides on its results."""
        return [described(settings) for _, settings in self.runs]


def each(field: str, values: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Points over one field, named after it: similar-1, similar-3."""
    return {f"{field.rpartition('.')[2]}-{value}": {field: value} for value in values}


def read(path: Path) -> Sweep:
    """What a sweep file says.

    Raises:
      UserError: there is no such file, or it has no `get_sweep` that returns a `Sweep`.
    """
    if not path.is_file():
        raise UserError(f"--sweep={path}: no such file; name one as configs/sweeps/neighbors.py")
    names = runpy.run_path(str(path))
    found = names["get_sweep"]() if "get_sweep" in names else None
    if not isinstance(found, Sweep):
        raise UserError(f"{path}: has no function get_sweep() that returns a Sweep")
    return found


def parse_settings(texts: Sequence[str]) -> dict[str, str]:
    """Field -> value of texts such as "sft.steps=200", as the command line takes them.

    Raises:
      UserError: a text is none of that form, or two are of the same field.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        field = name.removeprefix("config.")
        if not (field and equals) or field in found:
            raise UserError(f"--set={text}: write --set=FIELD=VALUE, each field once")
        found[field] = value
    return found


def with_settings(path: Path, sweep: Sweep, settings: Mapping[str, str]) -> Sweep:
    """The sweep with what `--set` says of every point, before what the file says of them.

    Raises:
      UserError: a point sets such a field itself.
    """
    for name, sets in sweep.points.items():
        if field := next((field for field in settings if field in sets), None):
            raise UserError(
                f"--set={field}={settings[field]}: point {name} of {path} sets {field} itself; "
                "leave it out, or change the file"
            )
    return dataclasses.replace(sweep, settings={**sweep.settings, **settings})


def points(path: Path, sweep: Sweep) -> list[Point]:
    """The points in order, with their settings.

    Raises:
      UserError: there is none; a name is no name of a folder; a field does not exist or has a value
        out of its range; files that a point reads are not there (`experiment.check`); two points
        have equal settings; points have other data or candidates than the first. Names the file,
        the point and the field.
    """
    if not sweep.points:
        raise UserError(f"{path}: the sweep has no points; name one or more")
    found: list[Point] = []
    for name, sets in sweep.points.items():
        if not _NAME.fullmatch(name) or name in _RESERVED:
            raise UserError(
                f"{path}: point {name!r}: a folder has this name; use letters, digits and ._+=-, "
                f"and none of {', '.join(_RESERVED)}"
            )
        try:
            point = _point(name, sets, sweep)
            if found:
                _check_shared(found[0], point)
            experiment.check(point.settings)
        except UserError as error:
            raise UserError(f"{path}: point {name}: {error}") from error
        found.append(point)
    for first, second in itertools.combinations(found, 2):
        if first.recorded == second.recorded:
            raise UserError(
                f"{path}: points {first.name} and {second.name} have equal settings; leave one out"
            )
    return found


def _point(name: str, sets: Mapping[str, Any], sweep: Sweep) -> Point:
    """Raises UserError without the name of the file."""
    own = {**sweep.settings, **sets}
    arguments = (f"--config={sweep.config}", *(f"--config.{f}={_text(v)}" for f, v in own.items()))
    config = _config(arguments)
    _check_method(from_config(Settings, config).method)
    return Point(name, sets, arguments, tuple(several.runs(config).items()))


def _config(arguments: Sequence[str]) -> ConfigDict:
    """The config that `launch/train.py` makes of its arguments."""
    argv = ["sweep", *arguments]
    known = flags.FlagValues()
    holder = config_flags.DEFINE_config_file(
        "config", None, "", known, lock_config=True, sys_argv=argv
    )
    startup.parse_flags(argv, known)
    return holder.value


def _text(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else repr(value)


def _check_method(method: str) -> None:
    if method == "scaling":
        raise UserError(
            "config.method='scaling': such a run has no table; launch/scaling.py compares several"
        )
    if method == BOTH:
        raise UserError(
            f"config.method={method!r}: a point is about one row of the table; make each method a "
            "point, or run launch/train.py"
        )


def _check_shared(first: Point, other: Point) -> None:
    """Raises UserError unless both rank the same candidates for the same users."""
    if changed := differences(shared(first.settings), shared(other.settings), "config"):
        raise UserError(
            f"{changed[0]}, other than point {first.name}: points are compared user by user, so "
            "all need the same data and candidates"
        )
