"""Folders that appear whole or not at all, what reaches the disk itself, and damage as one line.

Input workers use it too: nothing here knows of other processes.
"""

import contextlib
import glob
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmsrec_jax.runtime.errors import UserError, first_line


@contextlib.contextmanager
def arriving(directory: Path, *, replaces: bool = False) -> Iterator[Path]:
    """A new folder beside `directory`, of a name that nothing else has, which takes its place when
    the block ends well and is removed when it does not.

    `directory` is absent or an empty folder, or one whose content it `replaces`.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary(directory)
    partial.mkdir()
    try:
        with named(directory):
            yield partial
            sync_tree(partial)
            if replaces and directory.exists():
                old = temporary(directory)
                os.replace(directory, old)
                os.replace(partial, directory)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(partial, directory)
            sync(directory.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def left_behind(directory: Path) -> list[Path]:
    """The folders of `arriving(directory)` that killed processes left."""
    return sorted(directory.parent.glob(f".{glob.escape(directory.name)}.*.partial"))


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk itself."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError:  # some network file systems cannot for a folder
        if not path.is_dir():
            raise
    finally:
        os.close(number)


def sync_tree(directory: Path) -> None:
    """`sync` of everything in a folder, and of the folder."""
    for folder, _, names in os.walk(directory):
        for name in names:
            if stat.S_ISREG((Path(folder) / name).lstat().st_mode):
                sync(Path(folder) / name)
        sync(Path(folder))


@contextlib.contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Errors of the operating system that come out of the block name a file: `path` where they name
    none of their own."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


@contextlib.contextmanager
def readable(path: Path, remedy: str) -> Iterator[None]:
    """Whatever goes wrong in the block becomes one line: `path` is damaged, and what to do.

    Raises:
      UserError: instead of any other error.
    """
    try:
        if not path.is_dir():
            _check_regular(path)
        yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise _damaged(path, error, remedy) from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: it is missing; {remedy}") from error
    except OSError as error:
        if error.errno is None:  # pyarrow's and numpy's own
            raise _damaged(path, error, remedy) from error
        with named(path):
            raise
    except Exception as error:  # readers raise whatever the damage leads to
        raise _damaged(path, error, remedy) from error


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file that this package wrote.

    Raises:
      UserError: it is missing, or no JSON object.
    """
    with readable(path, remedy):
        _check_regular(path)  # nor a folder
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
    return found


def read_parquet(path: Path, columns: Sequence[str], remedy: str) -> pa.Table:
    """A table that this package wrote, all of it, which has at least `columns`.

    Raises:
      UserError: it is missing or damaged, or lacks a column.
    """
    with readable(path, remedy):
        _check_regular(path)  # nor a folder
        # Not mapped: a page that is damaged or cut off would end the process.
        table = pq.read_table(path, memory_map=False)
        table.validate(full=True)  # texts are UTF-8, indices lie in their dictionaries
        names = table.column_names  # no UTF-8 when damaged
    if missing := [name for name in columns if name not in names]:
        raise UserError(f"{path}: column {missing[0]} is missing; {remedy}")
    return table


def _check_regular(path: Path) -> None:
    """Reading a pipe would wait for ever, a device might never end."""
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("no regular file")


def _damaged(path: Path, error: Exception, remedy: str) -> UserError:
    return UserError(f"{path}: damaged ({first_line(error)}); {remedy}")


def temporary(path: Path) -> Path:
    """A hidden neighbor of `path` of a name that nothing else has."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
