"""What the target competes with: frozen sampled candidates, or the whole catalog.

`sampled` draws the negatives once, hashes them and stores them beside the run, so that every system
is scored on the same lists; the positive's position in its list is random, because a stable sort
over a list that begins with the positive turns ties into hits. Under `FULL` everything competes
but what the user had before.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mmsrec_jax.data import sequences
from mmsrec_jax.data.records import Histories
from mmsrec_jax.runtime import disk
from mmsrec_jax.runtime.errors import UserError
from mmsrec_jax.runtime.files import write_parquet

FULL = "full"
_REJECTION_ROUNDS = 32


@dataclass(frozen=True)
class Candidates:
    """Frozen candidate lists.

    rows int32[R, 2] (user, position), items int32[R, 1 + n], positive int32[R].
    `items[r, positive[r]]` is the target; `name` is "sampled@n"; `digest` is the SHA-256 of the
    content.
    """

    rows: np.ndarray
    items: np.ndarray
    positive: np.ndarray
    seed: int

    @property
    def name(self) -> str:
        return f"sampled@{self.items.shape[1] - 1}"

    @property
    def targets(self) -> np.ndarray:
        return self.items[np.arange(len(self.items)), self.positive]

    @property
    def digest(self) -> str:
        return _digest(self.rows, self.items, self.positive)

    def write(self, path: str | Path) -> None:
        """Writes parquet atomically: user, position, positive, candidates; digest as metadata."""
        path = Path(path)
        width = self.items.shape[1]
        table = pa.table(
            {
                "user": pa.array(self.rows[:, 0]),
                "position": pa.array(self.rows[:, 1]),
                "positive": pa.array(self.positive),
                "candidates": pa.FixedSizeListArray.from_arrays(
                    pa.array(self.items.ravel()), width
                ),
            }
        ).replace_schema_metadata({"digest": self.digest, "seed": str(self.seed)})
        write_parquet(path, table)

    @classmethod
    def read(cls, path: str | Path) -> "Candidates":
        """Reads what `write` stored. Raises UserError when the content is not what was hashed."""
        path = Path(path)
        if not path.is_file():
            raise UserError(
                f"{path}: no such candidates file; run the evaluation that draws it first"
            )
        remedy = "delete the file, it is then drawn again"
        table = disk.read_parquet(path, ("user", "position", "candidates", "positive"), remedy)
        metadata = table.schema.metadata or {}
        with disk.readable(path, remedy):
            rows = np.stack([table["user"].to_numpy(), table["position"].to_numpy()], 1)
            lists = table["candidates"].combine_chunks().flatten().to_numpy()
            found = cls(
                rows.astype(np.int32),
                lists.reshape(len(table), -1).astype(np.int32),
                table["positive"].to_numpy().astype(np.int32),
                int(metadata.get(b"seed", b"0")),
            )
        if found.digest.encode() != metadata.get(b"digest"):
            raise UserError(f"{path}: candidates differ from their stored digest; delete the file")
        return found


def candidates_file(directory: Path, protocol: str) -> Path:
    """Where a run's step `evaluation` keeps the candidates of a protocol."""
    return directory / f"candidates-{protocol}.parquet"


def full_digest(rows: np.ndarray) -> str:
    """SHA-256 of what `FULL` ranks on given data: the rows int32[R, 2] (user, position)."""
    return _digest(rows)


def sampled(
    histories: Histories, rows: np.ndarray, *, n: int, seed: int, num_items: int
) -> Candidates:
    """One target and n uniform negatives per row, none of them anywhere in the user's full history.

    rows int32[R, 2] as in a Split. The full history, test target included, so that a later purchase
    is never called a negative. Raises UserError when a user leaves fewer than n items.
    """
    rows = np.asarray(rows, np.int32)
    rng = np.random.default_rng([seed, n])
    users = rows[:, 0].astype(np.int64)
    known = _known(histories, num_items)
    _check_unseen(histories, users, known, n, num_items)
    negatives = rng.integers(0, num_items, (len(rows), n))
    bad = _unusable(negatives, users, known, num_items)
    for _ in range(_REJECTION_ROUNDS):
        if not bad.any():
            break
        negatives[bad] = rng.integers(0, num_items, int(bad.sum()))
        open_rows = np.flatnonzero(bad.any(1))
        bad[open_rows] = _unusable(negatives[open_rows], users[open_rows], known, num_items)
    for row in np.flatnonzero(bad.any(1)):  # users who know nearly the whole catalog
        allowed = np.setdiff1d(np.arange(num_items), histories.of(int(users[row])))
        negatives[row] = rng.choice(allowed, n, replace=False)

    positive = rng.integers(0, n + 1, len(rows)).astype(np.int32)
    items = np.empty((len(rows), n + 1), np.int32)
    is_positive = np.arange(n + 1)[None] == positive[:, None]
    items[is_positive] = sequences.targets(histories, rows)
    items[~is_positive] = negatives.ravel()
    return Candidates(rows, items, positive, seed)


def check_negatives(histories: Histories, rows: np.ndarray, *, n: int, num_items: int) -> None:
    """Raises what `sampled` would raise."""
    known = _known(histories, num_items)
    _check_unseen(histories, np.asarray(rows)[:, 0].astype(np.int64), known, n, num_items)


def up_to(histories: Histories, rows: np.ndarray) -> Histories:
    """The histories without what the users of these rows took after their row's target.

    rows: int32[R, 2] (user, position), at most one a user.
    """
    last = histories.lengths - 1
    last[rows[:, 0]] = rows[:, 1]
    position = np.arange(len(histories.items)) - np.repeat(
        histories.offsets[:-1], histories.lengths
    )
    return histories.select(position <= np.repeat(last, histories.lengths))


def _digest(*arrays: np.ndarray) -> str:
    content = hashlib.sha256()
    for array in arrays:
        content.update(repr(array.shape).encode())
        content.update(np.ascontiguousarray(array, "<i4").tobytes())
    return content.hexdigest()


def _known(histories: Histories, num_items: int) -> np.ndarray:
    """int64, sorted: user * num_items + item of everything that a user has taken."""
    counts = np.diff(histories.offsets)
    owner = np.repeat(np.arange(len(counts)), counts)
    return np.unique(owner * num_items + histories.items.astype(np.int64))


def _check_unseen(
    histories: Histories, users: np.ndarray, known: np.ndarray, n: int, num_items: int
) -> None:
    free = num_items - np.bincount(known // num_items, minlength=len(histories))
    if len(users) and free[users].min() < n:
        worst = users[np.argmin(free[users])]
        raise UserError(
            f"config.evaluation.negatives names {n}, but user {str(histories.users[worst])!r} has "
            f"only {free[worst]} unseen items; lower it"
        )


def _unusable(
    negatives: np.ndarray, users: np.ndarray, known: np.ndarray, num_items: int
) -> np.ndarray:
    """True where a draw is in the user's history or repeats an earlier draw of its row."""
    keys = users[:, None] * num_items + negatives
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    bad = known[at] == keys
    order = np.argsort(negatives, axis=1, kind="stable")
    ordered = np.take_along_axis(negatives, order, 1)
    repeated = np.zeros_like(bad)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    back = np.empty_like(repeated)
    np.put_along_axis(back, order, repeated, 1)
    return bad | back
