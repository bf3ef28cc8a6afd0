"""Damages the valid files of a reader with seeds and reads them: the tests of fuzzing share it."""

import dataclasses
import gzip
import os
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import hostile
from mutate import damaged_bytes, damaged_json

from mmsrec_jax.runtime.errors import UserError

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
_SLOWEST = 20.0  # seconds, of one file
_MEMORY = 3 * 2**20  # KiB that the largest moment may add

Damage = Callable[[bytes, random.Random], bytes]


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader. make: writes valid files into a folder. read: reads them. damage: by the end of a
    file's name. cases: how many run with the other tests, about a second's worth."""

    make: Callable[[Path], None]
    read: Callable[[Path], object]
    damage: dict[str, Damage]
    cases: int


def json_value(data: bytes, rng: random.Random) -> bytes:
    return damaged_json(data.decode(), rng)


def json_lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = damaged_json(lines[at].decode(), rng)
    return b"\n".join(lines) + b"\n"


def either(one: Damage, other: Damage) -> Damage:
    return lambda data, rng: (one if rng.random() < 0.5 else other)(data, rng)


def unpacked(data: bytes, rng: random.Random) -> bytes:
    """Of a gzip file: what it holds, or its own bytes."""
    if rng.random() < 0.5:
        return damaged_bytes(data, rng)
    return gzip.compress(damaged_bytes(gzip.decompress(data), rng))


def for_seconds(seconds: float) -> Iterator[int]:
    """Seeds, other ones than those of the cases that run with the other tests."""
    end = time.monotonic() + seconds
    seed = 10_000 + SEED
    while time.monotonic() < end:
        yield seed
        seed += 1


def fuzz(name: str, target: Target, folder: Path, seeds: Iterable[int]) -> int:
    """How many damages were tried; fails at the first that the reader does not take."""
    valid = folder / "valid"
    valid.mkdir()
    target.make(valid)
    target.read(valid)
    paths = [path for path in sorted(valid.rglob("*")) if path.is_file()]
    damages = {
        path: damage
        for path in paths
        for end, damage in target.damage.items()
        if path.name.endswith(end)
    }
    assert damages, f"{name}: no file to damage"
    begun, tried = _peak(), 0
    for seed in seeds:
        rng = random.Random(seed)
        work = folder / "work"
        shutil.copytree(valid, work)
        for path in rng.sample(list(damages), rng.choice((1, 1, 1, min(2, len(damages))))):
            damaged = damages[path](path.read_bytes(), rng)
            (work / path.relative_to(valid)).write_bytes(damaged)
        _read(f"{name}, FUZZ_SEED={seed}", target, work)
        assert _peak() - begun < _MEMORY, f"{name}, FUZZ_SEED={seed}: memory"
        shutil.rmtree(work)
        tried += 1
    return tried


def _read(label: str, target: Target, work: Path) -> None:
    start = time.monotonic()
    try:
        target.read(work)
    except UserError as error:
        hostile.check_line(str(error))
    except Exception as error:
        raise AssertionError(f"{label}: {type(error).__name__}: {str(error)[:300]}") from error
    assert time.monotonic() - start < _SLOWEST, f"{label}: slow"


def _peak() -> int:
    """KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
