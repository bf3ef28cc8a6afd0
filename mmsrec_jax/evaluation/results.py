"""The ranks that a run leaves on disk, with all it takes to tell whether two can be compared.

One file `ranks-SYSTEM-PROTOCOL.parquet` a system and protocol, with a dot for a / in a name.
Nothing in it depends on a metric or a cut-off up to the length of the stored lists.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmsrec_jax.evaluation import ranking
from mmsrec_jax.evaluation.metrics import Ranks
from mmsrec_jax.runtime import processes
from mmsrec_jax.runtime.errors import UserError

_PROTOCOL = re.compile(r"full|sampled@[0-9]{1,9}")
_SYSTEM = re.compile(r"[\w./@+()=:, -]{1,100}")
_SEED = re.compile(r"-?[0-9]{1,18}")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What two results must share to be compared, user by user.

    data: fingerprint of the store; split: its kind; protocol: "full" or "sampled@n"; candidates:
    digest of the test rows and, when sampled, of what each target competes with.
    """

    data: str
    split: str
    protocol: str
    candidates: str

    def differences(self, other: "Setting") -> list[str]:
        """Names of the fields that differ."""
        names = [field.name for field in dataclasses.fields(self)]
        return [name for name in names if getattr(self, name) != getattr(other, name)]


@dataclasses.dataclass(frozen=True)
class Result:
    """One ranks file: which system, under what setting, of which seed and config."""

    path: Path
    system: str
    seed: int
    config: str
    setting: Setting
    ranks: Ranks


class Results:
    """The ranks files of one run's folder.

    data, split: as in `Setting`. seed, config: the run's; of the config a digest without seeds is
    stored, so that several seeds of one config are recognized.
    """

    def __init__(
        self, directory: Path, *, data: str, split: str, seed: int, config: Mapping[str, Any]
    ):
        self._directory, self._data, self._split = directory, data, split
        self._seed, self._config = seed, config_digest(config)

    def add(self, system: str, protocol: str, candidates: str, rank: Callable[[], Ranks]) -> Ranks:
        """The ranks of a system: those on disk, else what `rank` finds, which is then stored.

        Raises:
          UserError: the file on disk is of other data or other candidates.
        """
        path = self._directory / f"ranks-{system.replace('/', '.')}-{protocol}.parquet"
        setting = Setting(self._data, self._split, protocol, candidates)
        if processes.from_main(path.exists):
            stored = read(path)
            if differ := stored.setting.differences(setting):
                raise UserError(f"{path}: of other {', '.join(differ)}; delete {self._directory}")
            return stored.ranks
        ranks = rank()
        write(path, ranks, system=system, setting=setting, seed=self._seed, config=self._config)
        return ranks


def write(
    path: Path, ranks: Ranks, *, system: str, setting: Setting, seed: int, config: str
) -> None:
    """One ranks file, atomically."""
    ranking.write_ranks(
        path, ranks, system=system, seed=seed, config=config, **dataclasses.asdict(setting)
    )


def read(path: Path) -> Result:
    """Reads one ranks file.

    Raises:
      UserError: it is missing, no ranks file, or does not say what it is of.
    """
    ranks, stored = ranking.read_ranks(path)
    fields = [field.name for field in dataclasses.fields(Setting)]
    missing = [name for name in ("system", "seed", "config", *fields) if name not in stored]
    if missing:
        raise UserError(
            f"{path}: does not say its {missing[0]}: an older version wrote it; delete the folder "
            f"{path.parent} and run launch/train.py with this --workdir again"
        )
    setting = Setting(**{name: stored[name] for name in fields})
    # Names of files and of rows of the table are made of them.
    if not _PROTOCOL.fullmatch(setting.protocol):
        raise UserError(f"{path}: {setting.protocol[:80]!r} is no protocol; delete the file")
    if not _SYSTEM.fullmatch(stored["system"]):
        raise UserError(f"{path}: {stored['system'][:80]!r} is no system; delete the file")
    if not _SEED.fullmatch(stored["seed"]):
        raise UserError(f"{path}: {stored['seed'][:80]!r} is no seed; delete the file")
    return Result(path, stored["system"], int(stored["seed"]), stored["config"], setting, ranks)


def read_all(directory: Path) -> list[Result]:
    """Every ranks file in a folder, by name. Raises UserError when there is none."""
    paths = sorted(directory.glob("ranks-*.parquet"))
    if not paths:
        raise UserError(f"{directory}: no ranks-*.parquet here; run the step evaluation first")
    return [read(path) for path in paths]


def is_name(text: str) -> bool:
    """Whether a file and a row of a table can be called so."""
    return bool(_SYSTEM.fullmatch(text)) and "/" not in text


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of a nested config without its fields called seed."""
    return hashlib.sha256(json.dumps(_seedless(config), sort_keys=True).encode()).hexdigest()


def _seedless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _seedless(inner) for name, inner in value.items() if name != "seed"}
    return value
