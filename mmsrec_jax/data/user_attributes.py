"""What users state of themselves, such as an age: personal data, read where it is asked for alone.

`config.data.user_fields` asks. It is joined to the users that are left of the data, so that filters
need not know of it, and it is stored apart from the histories.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from mmsrec_jax.runtime import disk
from mmsrec_jax.runtime.errors import UserError

FILE = "users.parquet"
_USER, _STATED = "user", "stated "  # columns of the file; a field may be called "user"


@dataclass(frozen=True, eq=False)
class UserAttributes:
    """Of U users: field -> text[U], null where a user states nothing; one field at least, in the
    order asked for."""

    columns: Mapping[str, pa.DictionaryArray]

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[str | None]]) -> "UserAttributes":
        """Of plain columns; an empty text is nothing."""
        return cls(
            {
                name: pa.array([text or None for text in column], pa.string()).dictionary_encode()
                for name, column in columns.items()
            }
        )

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(self.columns)

    @property
    def coverage(self) -> dict[str, int]:
        """Field -> users who state it."""
        return {name: len(column) - column.null_count for name, column in self.columns.items()}

    def stated(self, user: int) -> dict[str, str]:
        """Field -> text of one user, without those that the user does not state."""
        found = {name: column[user].as_py() for name, column in self.columns.items()}
        return {name: text for name, text in found.items() if text is not None}

    def take(self, users: np.ndarray) -> "UserAttributes":
        """Of these users, int[n], in this order."""
        return UserAttributes({name: c.take(pa.array(users)) for name, c in self.columns.items()})


class UserRow(NamedTuple):
    """A row of a publisher's file. where: file and line, for messages."""

    where: str
    id: str
    stated: Mapping[str, str]


class Joined(NamedTuple):
    """What a file says of the users of some data, and what was noticed, with a count."""

    attributes: UserAttributes
    notes: Counter[str]


def join(rows: Iterable[UserRow], users: np.ndarray, fields: Sequence[str], name: str) -> Joined:
    """What the rows of a file state of users str[U], in the order of these.

    name: of the file, for messages.

    Raises:
      UserError: a user has two rows, or none of the users states one of the fields.
    """
    index = {user: u for u, user in enumerate(users.tolist())}
    columns: dict[str, list[str | None]] = {field: [None] * len(users) for field in fields}
    seen: set[str] = set()
    notes: Counter[str] = Counter()
    for row in rows:
        if row.id in seen:
            raise UserError(f"{row.where}: user {row.id!r} occurs a second time; keep one row")
        seen.add(row.id)
        at = index.get(row.id)
        if at is None:
            notes[f"rows of {name} of users that are not in the data, unused"] += 1
            continue
        for field in fields:
            columns[field][at] = row.stated.get(field)
    notes[f"users without a row in {name}: nothing is known of them"] = len(index.keys() - seen)
    found = UserAttributes.of(columns)
    for field, count in found.coverage.items():
        if not count:
            raise UserError(
                f"config.data.user_fields: none of the {len(users):,} users states {field!r} in "
                f"{name}; leave it out"
            )
    return Joined(found, +notes)


def write(directory: Path, users: np.ndarray, attributes: UserAttributes) -> None:
    """Writes `users.parquet`: a row for each of users str[U]."""
    from mmsrec_jax.runtime import files  # it imports jax

    columns = {f"{_STATED}{n}": c.cast(pa.string()) for n, c in attributes.columns.items()}
    table = pa.table({_USER: pa.array(users.tolist(), pa.string()), **columns})
    files.write_parquet(directory / FILE, table)


def read(directory: Path, users: np.ndarray) -> UserAttributes:
    """What `write` wrote, of users str[n] in this order.

    Raises:
      UserError: there is no such file, it is damaged, or lacks one of the users.
    """
    path = directory / FILE
    remedy = f"delete {directory} and run launch/train.py, which makes it"
    table = disk.read_parquet(path, (_USER,), remedy)
    index = {user: at for at, user in enumerate(table[_USER].to_pylist())}
    places = [index.get(user, -1) for user in users.tolist()]
    if -1 in places:
        raise UserError(f"{path}: no user {str(users[places.index(-1)])!r}; {remedy}")
    fields = [name for name in table.column_names if name.startswith(_STATED)]
    columns = {
        name.removeprefix(_STATED): table[name].combine_chunks().dictionary_encode()
        for name in fields
    }
    return UserAttributes(columns).take(np.array(places, np.int64))
