"""Recommends from the folder that launch/export.py wrote of a sequential recommender.

    python recommend.py ITEM_ID ITEM_ID ...     # a history of item ids, oldest first
    python recommend.py ITEM_ID@SECONDS ...     # for a model that reads times, since 1970

Needs jax, numpy and flatbuffers, and nothing of the package that wrote the folder. In a program:

    recommender = Recommender("DIR")
    recommender.top([["item 3", "item 8"], ["item 5"]])     # [(id, score), ...] of each history
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

FORMAT = "mmsrec_jax sequential recommender 1"
ABOUT, PROGRAM, WEIGHTS, ITEMS = "recommender.json", "program.jax", "weights.npz", "items.json"
_REMEDY = "export it again with launch/export.py"


class ExportError(Exception):
    """One line: which file is wrong and what to do."""


class Recommender:
    """An exported recommender.

    Attributes:
      ids: item ids; item i of the program is `ids[i]`.
      length: latest items of a history that are read.
      top_k: items that one call returns at most.
      uses_times: it reads when the items were chosen.
    """

    def __init__(self, directory: str | Path):
        """Raises ExportError when a file is missing, damaged or of another format."""
        directory = Path(directory)
        about = _about(directory / ABOUT)
        expected = about["files"]
        self.length, self.top_k = about["length"], about["top_k"]
        self.uses_times = about["uses_times"]
        for name in (PROGRAM, WEIGHTS, ITEMS):
            path = directory / name
            if not path.is_file():
                raise ExportError(f"{path}: missing; {_REMEDY}")
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected.get(name):
                    raise ExportError(f"{path}: damaged, or of another export; {_REMEDY}")
        self.ids: list[str] = json.loads((directory / ITEMS).read_bytes())
        self._index = {id: i for i, id in enumerate(self.ids)}
        with np.load(directory / WEIGHTS) as stored:
            self._weights = {name: jax.device_put(stored[name]) for name in stored.files}
        exported = export.deserialize(bytearray((directory / PROGRAM).read_bytes()))
        self._program = jax.jit(exported.call)

    def top(
        self,
        histories: Sequence[Sequence[str]],
        times: Sequence[Sequence[int]] | None = None,
        *,
        repeat: bool = False,
    ) -> list[list[tuple[str, float]]]:
        """The best items after each history of ids, oldest first, with their scores.

        times: seconds since 1970 beside the ids, for a model that `uses_times`. repeat: items of
        the history may come again. Raises ExportError for an id that the model does not know, an
        empty history, and times that are missing or not as many as ids.
        """
        if not histories:
            return []
        rows = [[self._position(id) for id in history] for history in histories]
        if not all(rows):
            raise ExportError("a history is empty: give one item id or more")
        if self.uses_times and times is None:
            raise ExportError("this model reads times: give them beside the histories")
        if times is not None and [len(each) for each in times] != [len(row) for row in rows]:
            raise ExportError("times: give as many as there are ids in each history")
        for each in times or ():
            if not all(0 <= time < 2**31 for time in each) or sorted(each) != list(each):
                raise ExportError("times: give seconds since 1970, oldest first")
        # Sizes are powers of two, so that few programs are compiled.
        size = 1 << (len(rows) - 1).bit_length()
        longest = 1 if repeat else 1 << (max(map(len, rows)) - 1).bit_length()
        seen = np.full((size, longest), -1, np.int32)
        ids = np.full((size, self.length), -1, np.int32)
        clock = np.zeros((size, self.length), np.int32)
        for i, row in enumerate(rows):
            latest = row[-self.length :]
            ids[i, : len(latest)] = latest
            if self.uses_times and times is not None:
                clock[i, : len(latest)] = times[i][-self.length :]
            if not repeat:
                seen[i, : len(row)] = row
        scores, items = map(np.asarray, self._program(self._weights, ids, clock, seen))
        return [
            [(self.ids[i], float(s)) for i, s in zip(*row, strict=True) if np.isfinite(s)]
            for row in zip(items[: len(rows)], scores[: len(rows)], strict=True)
        ]

    def _position(self, id: str) -> int:
        if id not in self._index:
            raise ExportError(f"item {id!r} is not among the {len(self.ids)} of {ITEMS}")
        return self._index[id]


def _about(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ExportError(f"{path}: missing; {_REMEDY}")
    try:
        about = json.loads(path.read_bytes())
        found = about["format"]
        kinds = {"files": dict, "length": int, "top_k": int, "uses_times": bool}
        sound = found != FORMAT or all(isinstance(about[name], kinds[name]) for name in kinds)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ExportError(f"{path}: damaged; {_REMEDY}") from error
    if found != FORMAT:
        raise ExportError(f"{path}: its format is {found!r} and not {FORMAT!r}; {_REMEDY}")
    if not sound:
        raise ExportError(f"{path}: damaged; {_REMEDY}")
    return about


def main(arguments: Sequence[str]) -> int:
    """Prints the best items for one history, best first."""
    try:
        recommender = Recommender(Path(__file__).resolve().parent)
        ids, times = list(arguments), None
        if recommender.uses_times:
            choices = [_with_time(argument) for argument in arguments]
            ids, times = [id for id, _ in choices], [[time for _, time in choices]]
        found = recommender.top([ids], times)[0]
    except ExportError as error:
        print(f"recommend.py: {error}", file=sys.stderr)
        return 2
    for id, score in found:
        print(f"{id if id.isprintable() else repr(id)}\t{score:.4f}")
    return 0


def _with_time(argument: str) -> tuple[str, int]:
    """The item and the time of ITEM_ID@SECONDS."""
    id, _, time = argument.rpartition("@")
    if not id or not (time.isascii() and time.isdigit()):
        raise ExportError(f"{argument!r}: give ITEM_ID@SECONDS, seconds since 1970")
    return id, int(time)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
