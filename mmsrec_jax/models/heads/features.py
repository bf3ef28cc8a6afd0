"""Item features for heads that know content: any float matrix with one row per catalogue item."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mmsrec_jax.errors import UserError


def check(paths: Mapping[str, str]) -> None:
    """Stops early, with what to do, when a file is not given or not there (UserError)."""
    for name, path in paths.items():
        if not path:
            raise UserError(
                f"features.{name} is not set: give a .npy file with one row per catalogue item"
            )
        if not Path(path).is_file():
            raise UserError(f"features.{name}={path}: no such file; give a .npy, one row per item")


def read(paths: Mapping[str, str], num_items: int) -> dict[str, np.ndarray]:
    """float32[items, width] by name, from `.npy` files.

    Row i belongs to item i of the prepared catalogue: the items of NAME.item in their order, less
    those that filtering dropped. `data.store.open("RUN/data/store")[0].ids` lists their ids.

    Raises:
      UserError: names the file (and the row, counted from 0) that is missing, no matrix of numbers,
        of another number of rows, or not finite.
    """
    check(paths)
    return {name: _read(name, path, num_items) for name, path in paths.items()}


def _read(name: str, path: str, num_items: int) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"features.{name}={path}: cannot be read as .npy ({str(error).splitlines()[0]})"
        ) from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiub" or found.ndim != 2:
        raise UserError(f"features.{name}={path}: not a matrix of numbers [items, width]")
    if len(found) != num_items:
        raise UserError(
            f"features.{name}={path}: {len(found)} rows, but the catalogue has {num_items} items; "
            "write one row per item, in the order of the prepared catalogue"
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite: refused below
        found = found.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(found).all(1))
    if len(bad):
        raise UserError(
            f"features.{name}={path}: row {bad[0]} is not finite (NaN or infinite), as are "
            f"{len(bad) - 1} others; replace them"
        )
    return found
