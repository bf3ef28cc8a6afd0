"""What a step took: of each start, by which machine, for how long and when it ended.

It stands in the record of the step, so that it goes with it to another run that takes the step. Of
a start that was killed no more is known than when the step last wrote a file: its time is a lower
bound.
"""

import datetime
import math
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mmsrec_jax.runtime import processes

Start = Mapping[str, Any]
"""As `machine`; "seconds" unless it is under way; "ended", in UTC, of the one that finished the
step."""


def machine() -> dict[str, Any]:
    """Versions and devices of this process's run."""
    return {
        "mmsrec_jax": sys.modules["mmsrec_jax"].__version__,  # also where it is not installed
        "jax": jax.__version__,
        "python": platform.python_version(),
        "devices": jax.device_count(),
        "device": jax.devices()[0].device_kind,
        "processes": processes.count(),
    }


def with_another(earlier: Sequence[Start], record: Path) -> list[Start]:
    """`earlier` starts of a step that did not finish, and the one that begins now.

    record: the file that was written when the last of them began.
    """
    if not earlier:
        return [machine()]
    began = record.stat().st_mtime
    wrote = max(_times_of_change(record.parent), default=began)
    seconds = max(min(wrote, time.time()) - began, 0.0)
    return [*earlier[:-1], {**earlier[-1], "seconds": seconds}, machine()]


def with_end(found: Sequence[Start], seconds: float) -> list[Start]:
    """The same when the last of them finishes the step after so many seconds."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return [*found[:-1], {**found[-1], "seconds": seconds, "ended": now}]


def total(found: Sequence[Start]) -> float:
    """Seconds of all of them."""
    return math.fsum(start["seconds"] for start in found)


def is_sound(found: Any, *, finished: bool) -> bool:
    """Whether what the record of a step holds are starts; of one that has not finished the last is
    under way."""
    if not isinstance(found, list) or not all(isinstance(start, dict) for start in found):
        return False
    ended = found if finished else found[:-1]
    return all(_is_number(start.get("seconds")) for start in ended) and all(
        _is_number(start.get("devices")) and isinstance(start.get("ended", ""), str)
        for start in found
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and 0 <= value < math.inf


def _times_of_change(directory: Path) -> list[float]:
    paths = (Path(folder) / name for folder, _, names in os.walk(directory) for name in names)
    return [path.lstat().st_mtime for path in paths]
