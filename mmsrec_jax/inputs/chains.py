"""Chains of thought, or what stands in place of the computed ones: a teacher's, from a file.

A line of JSON for each training target:

    {"user": "u00001", "position": 5, "chain": "Prefers oak. New: garden."}

user: raw id; position: of the target in the user's history, from 0, oldest first; chain: recent
preference and how it moved, in any words. Other fields are ignored. A target without a line has the
computed chain.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmsrec_jax.data.ids import did_you_mean
from mmsrec_jax.data.records import Histories
from mmsrec_jax.inputs.tastes import Tastes
from mmsrec_jax.runtime import reading
from mmsrec_jax.runtime.buckets.given import local
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.settings import Section, setting


@dataclasses.dataclass(frozen=True)
class ChainSettings(Section):
    """The chain of thought of MLLM-SRec's answers."""

    scoring: str = setting(
        "given",
        "Its user steps when candidates are scored: the stored text of the last window, what the "
        "trained model writes, or none.",
        choices=("given", "generated", "none"),
    )
    label_weight: float = setting(
        1.0,
        "Weight of the label in the loss of the joint form, against 1 for a token of the chain. In "
        "the cached form `cached.next_in_history` weighs the chain.",
        low=1e-6,
        high=1000,
    )
    file: str = setting(
        "", "A teacher's chains for training targets, JSON lines. Empty: computed ones."
    )

    def check_file(self) -> None:
        """Stops early when the file is not there (UserError)."""
        if self.file and not local(self.file).is_file():
            raise UserError(f"config.chain.file={self.file}: no such file")


@dataclasses.dataclass(frozen=True)
class ComputedChains:
    """Chains of training targets int32[n, 2] (user, position), each made when it is asked for.

    given: of a teacher, by target; the others are what counting says of the last window before the
      target, and empty where none has ended.
    """

    tastes: Tastes
    targets: np.ndarray
    given: Mapping[tuple[int, int], str]

    def __getitem__(self, row: int) -> str:
        user, position = (int(value) for value in self.targets[row])
        if (user, position) in self.given:
            return self.given[user, position]
        count = self.tastes.windows.count(position)
        return self.tastes.preference(user, count - 1) if count else ""


def read(path: Path, histories: Histories) -> dict[tuple[int, int], str]:
    """Chains by (user index, position of the target).

    Raises:
      UserError: a line that is no such object, names a user or a position that is not there, or a
        target that has a line already.
    """
    index = {user: u for u, user in enumerate(histories.users.tolist())}
    found: dict[tuple[int, int], str] = {}
    for where, row in reading.json_lines(path):
        try:
            key, chain = _parsed(row, index, histories)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
        if key in found:
            user = reading.shown(row["user"])
            raise UserError(f"{where}: user {user}, position {key[1]} has a line already; keep one")
        found[key] = chain
    return found


def _parsed(
    row: Any, index: Mapping[str, int], histories: Histories
) -> tuple[tuple[int, int], str]:
    if not isinstance(row, dict):
        raise ValueError('no object; write {"user": ..., "position": ..., "chain": ...}')
    for name, kind in (("user", str), ("position", int), ("chain", str)):
        if type(row.get(name)) is not kind:
            raise ValueError(
                f"{name} is {reading.shown(row.get(name))}; it must be {kind.__name__}"
            )
    user, position, chain = row["user"], row["position"], " ".join(row["chain"].split())
    if user not in index:
        raise ValueError(
            f"no user {reading.shown(user)}; "
            + (did_you_mean(user, histories.users) or "ids are those of the raw files")
        )
    if not 0 <= position < histories.lengths[index[user]]:
        raise ValueError(
            f"position {position}: user {user!r} has {histories.lengths[index[user]]} interactions"
        )
    if not chain:
        raise ValueError("chain is empty; leave the line out")
    return (index[user], position), chain
